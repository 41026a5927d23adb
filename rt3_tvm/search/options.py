"""What a search is asked for."""

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rt3_tvm import rt3
from rt3_tvm.device import check_frequencies
from rt3_tvm.errors import Rt3Error, choices
from rt3_tvm.pattern import PatternShape
from rt3_tvm.search.training import PRECISIONS

BLOCK_METHODS = ("lasso", "gradual", "one-shot", "random")
PATTERN_METHODS = ("maps", "magnitude", "random")
SEARCHES = ("rl", "random", "evolution", "none")
WORKERS = ("in-process", "ray")

PHASES = ("dense", "blocks", "backbone", "search", "joint")
"""What a search does, in order."""
_TIMING = "device cluster frequencies frequencies_hz deadline_s latency tokens groups sparsity".split()
_MATTERS_FROM = {
    "blocks": "block block_sparsity block_sparsity_of block_rows exclude embeddings group_rows lasso pruned_rate distillation "
    "unlabelled unlabelled_batches files masked_gradients".split(),
    "search": "power cores pattern shape patterns candidates grid search children episode_batch child_steps reward controller "
    "level_weights".split(),
    "joint": ["gradual", "alone"],
}
"""The first phase that an option matters in; the options that are not here matter in all."""


@dataclass(frozen=True)
class RewardOptions:
    """The constants of RT3's reward.

    Parameters
    ----------
    accuracy_min, accuracy_dense
        A_min and A_orig; None: the dense model's accuracy on the validation split, and RT3's ratio of the two.
    runs_offset, runs_scale
        R_runs = (runs - offset) / scale; None: both are the runs of the densest child that meets the deadline, so that R_runs is
        what a child gains over it. RT3: 2.3e6, 2.2e6.
    runs_weight
        Of R_runs; 0 leaves it out, and no power needs to be known.
    order_penalty
        Subtracted unless a denser level is more accurate.
    missed
        Reward, but for R_runs, of a child that misses a deadline.
    battery_j, shares
        J of a charge, and the part of it that each level spends.
    """

    accuracy_min: float | None = None
    accuracy_dense: float | None = None
    runs_offset: float | None = None
    runs_scale: float | None = None
    runs_weight: float = 1.0
    order_penalty: float = 0.5
    missed: float = -1.0
    battery_j: float = rt3.BATTERY_J
    shares: tuple[float, ...] = rt3.SHARES


@dataclass(frozen=True)
class ControllerOptions:
    """The recurrent policy and REINFORCE: units (RT3's 35), learning rate, memory of the baseline, weight of the entropy."""

    hidden: int = rt3.CONTROLLER_UNITS
    rate: float = 0.02
    baseline: float = 0.9
    entropy: float = 0.01


@dataclass(frozen=True)
class SearchOptions:
    """What is searched for.

    Parameters
    ----------
    task
        A row of the table of tasks.
    device, cluster, frequencies
        Where it will run, and the Hz of each level, descending; None: three of the device's.
    deadline_s
        s of one inference; 0: ``sparsity`` is given.
    sparsity
        Of each level, ascending; None: searched for, or with ``search`` none the smallest that meets the deadline.
    latency, tokens
        ``rt3`` or a file of measured latencies; tokens of an inference, for ``rt3``.
    power, cores
        As ``rt3 simulate`` takes them.
    block, block_sparsity, block_sparsity_of, block_rows
        How the backbone is found (BLOCK_METHODS), its ratio, ratios of matrices by glob, rows of a block. None: the smallest
        ratio that meets the deadline at the top frequency, without a deadline the first level's sparsity.
    pattern, shape, groups, patterns, candidates, grid
        How patterns are found (PATTERN_METHODS); their shape, the groups V to choose from, patterns in a set, sets to choose
        from, sparsities within the backbone to choose from.
    group_rows
        Whether rows that may be permuted for free are put beside rows like them before anything is cut.
    epochs
        Of dense training, block pruning, training under the backbone's mask, and joint training.
    epoch_steps
        Batches with labels after which an epoch ends, drawn anew each time; 0: all.
    rate, pruned_rate
        Learning rates of dense training and of what follows; None: the task's.
    search, children, episode_batch, child_steps
        SEARCHES; children to propose, proposed at once, batches that each is trained for (0: an epoch).
    gradual
        Whether sparsity rises over the first half of joint training, the patterns cut anew each epoch; else it is there at once.
    alone
        Whether each level is trained alone too, to compare with.
    threads
        Of PyTorch, in every worker.
    """

    task: str
    device: str
    cluster: str | None = None
    frequencies: tuple[float, ...] | None = None
    deadline_s: float = 0.0
    sparsity: tuple[float, ...] | None = None
    latency: str = "rt3"
    tokens: int = 1
    power: str | None = None
    cores: int = 1
    block: str = "lasso"
    block_sparsity: float | None = None
    block_sparsity_of: tuple[tuple[str, float], ...] = ()
    block_rows: int = rt3.BLOCK_ROWS
    pattern: str = "maps"
    shape: PatternShape = PatternShape(1, 32, 1)
    groups: tuple[int, ...] = (1,)
    patterns: int = 256
    candidates: int = 4
    grid: tuple[float, ...] = rt3.PATTERN_SPARSITIES
    exclude: tuple[str, ...] = ()
    embeddings: bool = False
    group_rows: bool = False
    epochs: tuple[int, ...] = (1, 1, 1, 2)
    epoch_steps: int = 0
    rate: float | None = None
    pruned_rate: float | None = None
    lasso: float = rt3.LASSO
    distillation: float = 0.5
    unlabelled: tuple[Path, ...] = ()
    unlabelled_batches: int = 1
    masked_gradients: bool = True
    gradual: bool = True
    precision: str = "float32"
    level_weights: tuple[float, ...] = rt3.SHARES
    search: str = "rl"
    children: int = 100
    episode_batch: int = 5
    child_steps: int = 0
    reward: RewardOptions = field(default_factory=RewardOptions)
    controller: ControllerOptions = field(default_factory=ControllerOptions)
    alone: bool = False
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_levels()
        self._check_pruning()
        self._check_training()

    def _check_levels(self) -> None:
        if self.deadline_s < 0 or (self.deadline_s == 0 and self.sparsity is None):
            raise Rt3Error("give --deadline MS, or --sparsity S,S,S: what each level must reach")
        levels = self.levels
        if self.sparsity is not None:
            if not all(0.0 <= s < 1.0 for s in self.sparsity) or any(a >= b for a, b in pairwise(self.sparsity)):
                raise Rt3Error(f"--sparsity {_listed(self.sparsity)}: give them ascending, each in [0, 1)")
            if len(self.sparsity) != levels:
                raise Rt3Error(
                    f"{len(self.sparsity)} levels for {levels} frequencies: give one sparsity for each frequency"
                )
        if self.frequencies is not None:
            check_frequencies(self.frequencies, levels)
        for option, values in (("--level-weights", self.level_weights), ("--shares", self.reward.shares)):
            if len(values) != levels or not all(v > 0 for v in values):
                raise Rt3Error(f"{option} {_listed(values)}: give one above 0 for each of {levels} levels")
        if abs(sum(self.reward.shares) - 1.0) > 1e-6:
            raise Rt3Error(f"--shares {_listed(self.reward.shares)}: they must sum to 100 %")

    def _check_pruning(self) -> None:
        for option, value, table in (
            ("--block", self.block, BLOCK_METHODS),
            ("--pattern", self.pattern, PATTERN_METHODS),
            ("--search", self.search, SEARCHES),
            ("--precision", self.precision, tuple(PRECISIONS)),
        ):
            if value not in table:
                raise Rt3Error(f"{option} {value}: choose from {choices(table)}")
        ratios = [s for _, s in self.block_sparsity_of] + [self.block_sparsity or 0.0]
        if not all(0.0 <= s < 1.0 for s in ratios):
            raise Rt3Error(f"--block-sparsity {_listed(ratios)}: each must be in [0, 1)")
        if not all(0.0 < s < 1.0 for s in self.grid) or any(a >= b for a, b in pairwise(self.grid)):
            raise Rt3Error(f"--grid {_listed(self.grid)}: give them ascending, each in (0, 1)")
        if len(self.grid) < self.levels and self.sparsity is None:
            raise Rt3Error(f"--grid {_listed(self.grid)}: {self.levels} levels need as many sparsities to choose from")
        if not self.groups or min(self.groups) < 1 or self.patterns < 1 or self.candidates < 1 or self.block_rows < 1:
            raise Rt3Error("--group, --patterns, --candidates and --block-rows must be at least 1")
        for v in self.groups:
            if self.block_rows % v:
                raise Rt3Error(f"--block-rows {self.block_rows} must be a multiple of the group {v}")

    def _check_training(self) -> None:
        if len(self.epochs) != 4 or min(self.epochs) < 0:
            raise Rt3Error("--epochs takes four numbers: dense, block pruning, backbone, joint")
        if not 0.0 <= self.distillation <= 1.0:
            raise Rt3Error(f"--distillation {self.distillation:g} is outside [0, 1]")
        for option, rate in (("--rate", self.rate), ("--pruned-rate", self.pruned_rate)):
            if rate is not None and not 0.0 < rate < 10.0:
                raise Rt3Error(f"{option} {rate:g} is outside (0, 10)")
        if self.unlabelled and not self.distillation:
            raise Rt3Error("--unlabelled needs --distillation above 0: such text has nothing else to learn from")
        if self.lasso < 0 or self.children < 1 or self.episode_batch < 1 or min(self.child_steps, self.epoch_steps) < 0:
            raise Rt3Error(
                "--lasso, --child-steps and --epoch-steps must be at least 0, --children and --episode-batch at least 1"
            )
        if min(self.threads, self.tokens, self.cores, self.unlabelled_batches) < 1:
            raise Rt3Error("--threads, --seq-len, --cores and --unlabelled-batches must be at least 1")

    @property
    def levels(self) -> int:
        """Number of levels."""
        if self.frequencies is not None:
            return len(self.frequencies)
        return len(self.sparsity) if self.sparsity is not None else len(self.level_weights)

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON: what a journal is of."""
        return asdict(self) | {"unlabelled": [str(p) for p in self.unlabelled]}


def matters_from(option: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the first phase whose result an option changes that two configurations do not share."""
    if option == "epochs":
        before, after = ((*c[option][:3], 0, c[option][3]) for c in (old, new))  # the search has no epochs of its own
        return next(p for p, a, b in zip(PHASES, before, after, strict=True) if a != b)
    if option in _TIMING:  # the ratio of block pruning follows from them, unless it is given
        return "blocks" if None in (old.get("block_sparsity"), new.get("block_sparsity")) else "search"
    return next((phase for phase, options in _MATTERS_FROM.items() if option in options), PHASES[0])


def _listed(values: Any) -> str:
    return ",".join(f"{v:g}" for v in values)
