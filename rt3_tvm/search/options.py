"""What a search is asked for."""

from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from rt3_tvm import rt3
from rt3_tvm.device import check_frequencies
from rt3_tvm.energy.battery import BATTERY
from rt3_tvm.errors import Rt3Error, choices
from rt3_tvm.options import (
    FREQUENCIES,
    MILLISECONDS,
    NUMBER,
    PATH,
    PATTERNS,
    SHAPE,
    SHARES,
    TEXT,
    WHOLE,
    Kind,
    documented,
    numbers,
    option,
    switch,
    wholes,
)
from rt3_tvm.pattern import PatternShape

BLOCK_METHODS = ("lasso", "gradual", "one-shot", "random")
PATTERN_METHODS = ("maps", "magnitude", "random")
SEARCHES = ("rl", "random", "evolution", "none")
WORKERS = ("in-process", "ray")
PRECISIONS = ("float32", "bfloat16")
"""What matrix products are computed in while training; weights and scores are always float32."""

PHASES = ("dense", "blocks", "backbone", "search", "joint")
"""What a search does, in order."""
_TIMING = "timing"
"""Stands for a phase: from these the ratio of block pruning follows, unless it is given; the search sees them in any case."""


def _read_ratio(text: str) -> tuple[str, float]:
    glob, _, ratio = text.rpartition("=")
    try:
        return glob, float(ratio)
    except ValueError:
        raise Rt3Error(f"'{text}': give a glob of weights and a ratio, for example '*.query.weight=0.3'") from None


GLOB = TEXT.called("GLOB")
HOW = TEXT.called("HOW")
RATIO = Kind("GLOB=S", _read_ratio, lambda pair: f"{pair[0]}={pair[1]:g}")

_reward = partial(option, group="reward")


@documented
@dataclass(frozen=True)
class RewardOptions:
    """The constants of RT3's reward, R_runs = (runs - offset) / scale in it. What is None follows from the dense model."""

    accuracy_min: float | None = _reward(
        None, NUMBER.called("A"), f"A_min, RT3's {rt3.ACCURACY_MIN:g}; default that part of the dense model's accuracy"
    )
    accuracy_dense: float | None = _reward(
        None,
        NUMBER.called("A"),
        f"A_orig, RT3's {rt3.ACCURACY_DENSE:g}; default the dense model's, measured on validation",
    )
    runs_offset: float | None = _reward(
        None, NUMBER.called("N"), f"RT3's {rt3.RUNS_OFFSET:g}; default the runs of the densest child in time"
    )
    runs_scale: float | None = _reward(
        None, NUMBER.called("N"), f"RT3's {rt3.RUNS_SCALE:g}; default the runs of the densest child in time"
    )
    runs_weight: float = _reward(
        1.0, NUMBER.called("W"), "weight of R_runs; 0 leaves it out, and no power need be known"
    )
    order_penalty: float = _reward(0.5, NUMBER.called("P"), "subtracted unless each denser level is more accurate")
    missed: float = _reward(
        -1.0, NUMBER.called("R"), "reward, but for R_runs, of a child that misses a deadline", name="missed-reward"
    )
    battery_j: float = _reward(rt3.BATTERY_J, BATTERY, "a charge: 37800J, 10.5Wh or 3000mAhx3.85V", name="battery")
    shares: tuple[float, ...] = _reward(rt3.SHARES, SHARES, "% of the charge that each level spends")


_controller = partial(option, group="search")


@documented
@dataclass(frozen=True)
class ControllerOptions:
    """The recurrent policy and REINFORCE."""

    hidden: int = _controller(rt3.CONTROLLER_UNITS, WHOLE, "units of the policy, RT3's 35", name="controller-hidden")
    rate: float = _controller(0.02, NUMBER.called("R"), "learning rate of the policy", name="controller-rate")
    baseline: float = _controller(0.9, NUMBER.called("B"), "memory of the baseline", name="controller-baseline")
    entropy: float = _controller(0.01, NUMBER.called("E"), "weight of the entropy", name="controller-entropy")


_levels = partial(option, group="levels", phase=_TIMING)
_blocks = partial(option, group="block pruning and patterns", phase="blocks")
_sets = partial(option, group="block pruning and patterns", phase="search")
_training = partial(option, group="training")
_search = partial(option, group="search", phase="search")


@documented
@dataclass(frozen=True)
class SearchOptions:
    """What is searched for."""

    task: str = option(MISSING, TEXT, "lm, sts, rte, or text (files of text and label)")
    device: str = _levels(MISSING, TEXT, "where it will run, see rt3 devices")
    cluster: str | None = _levels(None, TEXT, "cluster of the device; default its first")
    frequencies: tuple[float, ...] | None = _levels(
        None, FREQUENCIES, "one per level, descending; default three of the device's", name="freqs"
    )
    deadline_s: float = _levels(
        0.0, MILLISECONDS, "of one inference, at every frequency; 0: the sparsity is given", name="deadline"
    )
    sparsity: tuple[float, ...] | None = _levels(
        None,
        numbers("one sparsity per level", "S,S,S"),
        "of each level, ascending; default searched for, or without a search the smallest that meets the deadline",
    )
    latency: str = _levels("rt3", TEXT.called("rt3|FILE"), "RT3's latency model, or what rt3 bench latency measured")
    tokens: int = _levels(1, WHOLE.called("T"), "tokens of an inference, for rt3", name="seq-len")
    power: str | None = option(
        None, TEXT.called("FILE|published"), "as rt3 simulate takes it", group="levels", phase="search"
    )
    cores: int = option(1, WHOLE, "cores busy in an inference", group="levels", phase="search")

    block: str = _blocks("lasso", HOW, "how the backbone is found: lasso, gradual, one-shot, random")
    block_sparsity: float | None = _blocks(
        None,
        NUMBER.called("S"),
        "of the backbone; default the smallest that meets the deadline at the top frequency, else the first level's",
    )
    block_sparsity_of: tuple[tuple[str, float], ...] = _blocks((), RATIO, "of some matrices; repeatable", repeated=True)
    block_rows: int = _blocks(rt3.BLOCK_ROWS, WHOLE.called("R"), "rows of a block")
    pattern: str = _sets("maps", HOW, "how patterns are found: maps (RT3's, refined), magnitude, random")
    shape: PatternShape = _sets(
        PatternShape(1, 32, 1), SHAPE, "of a pattern; 1x32q: columns are kept in quads", name="pattern-shape"
    )
    groups: tuple[int, ...] = option(
        (1,),
        wholes("groups V", "V,V"),
        "V to choose from",
        name="group",
        group="block pruning and patterns",
        phase=_TIMING,
    )
    patterns: int = _sets(256, PATTERNS, "patterns in a set; each: one for each block")
    candidates: int = _sets(4, WHOLE, "sets of each group to choose from")
    grid: tuple[float, ...] = _sets(
        rt3.PATTERN_SPARSITIES, numbers("sparsities", "S,S,.."), "sparsities within the backbone to choose from"
    )
    exclude: tuple[str, ...] = _blocks((), GLOB, "weights that stay dense; repeatable", repeated=True)
    embeddings: bool = switch(
        False, "prune the tables that tokens look up too", group="block pruning and patterns", phase="blocks"
    )
    group_rows: bool = switch(
        False,
        "put rows beside rows like them before anything is cut, where that is free",
        group="block pruning and patterns",
        phase="blocks",
    )

    epochs: tuple[int, ...] = _training(
        (1, 1, 1, 2), wholes("four numbers of epochs", "E,E,E,E"), "dense, block pruning, backbone, joint"
    )
    epoch_steps: int = _training(0, WHOLE, "batches with labels of an epoch, drawn anew each time; 0: all")
    rate: float | None = _training(None, NUMBER.called("R"), "learning rate of dense training; default the task's")
    pruned_rate: float | None = _training(
        None, NUMBER.called("R"), "that of what follows dense training; default the task's", phase="blocks"
    )
    lasso: float = _training(rt3.LASSO, NUMBER.called("L"), "strength of the group lasso", phase="blocks")
    distillation: float = _training(
        0.5, NUMBER.called("D"), "share of the dense model's outputs, in [0, 1]", phase="blocks"
    )
    unlabelled: tuple[Path, ...] = _training((), PATH, "text to distil on; repeatable", repeated=True, phase="blocks")
    unlabelled_batches: int = _training(1, WHOLE, "batches of it for each batch with labels", phase="blocks")
    masked_gradients: bool = switch(
        True,
        "a level's gradient reaches the weights that it masks, too, as in RT3's public code",
        name="whole-gradients",
        group="training",
        phase="blocks",
    )
    gradual: bool = switch(
        True, "full sparsity from the first epoch of joint training on", name="at-once", group="training", phase="joint"
    )
    precision: str = _training("float32", TEXT.called("P"), "of training: float32, bfloat16")
    level_weights: tuple[float, ...] = _training(
        rt3.SHARES, numbers("weights", "W,W,W"), "of the levels in the loss and in the accuracy", phase="search"
    )

    search: str = _search("rl", HOW, "rl, random, evolution, none")
    children: int = _search(100, WHOLE, "children to propose")
    episode_batch: int = _search(5, WHOLE, "children proposed at once")
    child_steps: int = _search(0, WHOLE, "batches that a child is trained for; 0: an epoch")
    reward: RewardOptions = field(default_factory=RewardOptions, metadata={"phase": "search"})
    controller: ControllerOptions = field(default_factory=ControllerOptions, metadata={"phase": "search"})
    alone: bool = switch(False, "train each level alone too, to compare with", group="training", phase="joint")
    threads: int = option(1, WHOLE, "of PyTorch, in every worker; the command line takes all cores", group="running")
    seed: int = option(0, WHOLE, "of everything that is drawn", group="running")

    def __post_init__(self) -> None:
        self._check_levels()
        self._check_pruning()
        self._check_training()

    def _check_levels(self) -> None:
        if self.deadline_s < 0 or (self.deadline_s == 0 and self.sparsity is None):
            raise Rt3Error("give `deadline_s`, or `sparsity`: what each level must reach")
        levels = self.levels
        if self.sparsity is not None:
            if not all(0.0 <= s < 1.0 for s in self.sparsity) or any(a >= b for a, b in pairwise(self.sparsity)):
                raise Rt3Error(f"`sparsity` {_listed(self.sparsity)}: give them ascending, each in [0, 1)")
            if len(self.sparsity) != levels:
                raise Rt3Error(
                    f"{len(self.sparsity)} levels for {levels} frequencies: give one sparsity for each frequency"
                )
        if self.frequencies is not None:
            check_frequencies(self.frequencies, levels)
        for name, values in (("`level_weights`", self.level_weights), ("`reward.shares`", self.reward.shares)):
            if len(values) != levels or not all(v > 0 for v in values):
                raise Rt3Error(f"{name} {_listed(values)}: give one above 0 for each of {levels} levels")
        if abs(sum(self.reward.shares) - 1.0) > 1e-6:
            raise Rt3Error(f"`reward.shares` {_listed(self.reward.shares)}: they must sum to 100 %")

    def _check_pruning(self) -> None:
        for name, value, table in (
            ("`block`", self.block, BLOCK_METHODS),
            ("`pattern`", self.pattern, PATTERN_METHODS),
            ("`search`", self.search, SEARCHES),
            ("`precision`", self.precision, PRECISIONS),
        ):
            if value not in table:
                raise Rt3Error(f"{name} {value}: choose from {choices(table)}")
        ratios = [s for _, s in self.block_sparsity_of] + [self.block_sparsity or 0.0]
        if not all(0.0 <= s < 1.0 for s in ratios):
            raise Rt3Error(f"`block_sparsity` {_listed(ratios)}: each must be in [0, 1)")
        if not all(0.0 < s < 1.0 for s in self.grid) or any(a >= b for a, b in pairwise(self.grid)):
            raise Rt3Error(f"`grid` {_listed(self.grid)}: give them ascending, each in (0, 1)")
        if len(self.grid) < self.levels and self.sparsity is None:
            raise Rt3Error(f"`grid` {_listed(self.grid)}: {self.levels} levels need as many sparsities to choose from")
        if not self.groups or min(self.groups) < 1 or self.patterns < 1 or self.candidates < 1 or self.block_rows < 1:
            raise Rt3Error("`groups`, `patterns`, `candidates` and `block_rows` must be at least 1")
        for v in self.groups:
            if self.block_rows % v:
                raise Rt3Error(f"`block_rows` {self.block_rows} must be a multiple of the group {v}")

    def _check_training(self) -> None:
        if len(self.epochs) != 4 or min(self.epochs) < 0:
            raise Rt3Error("`epochs` takes four numbers: dense, block pruning, backbone, joint")
        if not 0.0 <= self.distillation <= 1.0:
            raise Rt3Error(f"`distillation` {self.distillation:g} is outside [0, 1]")
        for name, rate in (("`rate`", self.rate), ("`pruned_rate`", self.pruned_rate)):
            if rate is not None and not 0.0 < rate < 10.0:
                raise Rt3Error(f"{name} {rate:g} is outside (0, 10)")
        if self.unlabelled and not self.distillation:
            raise Rt3Error("`unlabelled` needs `distillation` above 0: such text has nothing else to learn from")
        if self.lasso < 0 or self.children < 1 or self.episode_batch < 1 or min(self.child_steps, self.epoch_steps) < 0:
            raise Rt3Error(
                "`lasso`, `child_steps` and `epoch_steps` must be at least 0, `children` and `episode_batch` at least 1"
            )
        if min(self.threads, self.tokens, self.cores, self.unlabelled_batches) < 1:
            raise Rt3Error("`threads`, `tokens`, `cores` and `unlabelled_batches` must be at least 1")

    @property
    def levels(self) -> int:
        """Number of levels."""
        if self.frequencies is not None:
            return len(self.frequencies)
        return len(self.sparsity) if self.sparsity is not None else len(self.level_weights)

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON: what a journal is of."""
        return asdict(self) | {"unlabelled": [str(p) for p in self.unlabelled]}


def first_phases() -> dict[str, str]:
    """Return the first phase in which each field matters: one of PHASES, or ``timing``."""
    return {f.name: (f.metadata.get("phase") or f.metadata["option"].phase or PHASES[0]) for f in fields(SearchOptions)}


def matters_from(option: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the first phase whose result an option changes that two configurations do not share."""
    if option == "epochs":
        before, after = ((*c[option][:3], 0, c[option][3]) for c in (old, new))  # the search has no epochs of its own
        return next(p for p, a, b in zip(PHASES, before, after, strict=True) if a != b)
    phases = first_phases() | {"files": "blocks", "frequencies_hz": _TIMING}
    if option == "shape" and old[option].get("adjacent", 1) != new[option].get("adjacent", 1):
        return "blocks"  # the backbone keeps whole quads too
    phase = phases.get(option, PHASES[0])  # weights, data and versions matter in all
    if phase != _TIMING:
        return phase
    return "blocks" if None in (old.get("block_sparsity"), new.get("block_sparsity")) else "search"


def _listed(values: Any) -> str:
    return ",".join(f"{v:g}" for v in values)
