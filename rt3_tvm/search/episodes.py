"""Proposing children, scoring them, and keeping all of it in the journal."""

from collections.abc import Callable
from functools import partial
from typing import Any

from rt3_tvm import model as models
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.search.children import ChildTrainer
from rt3_tvm.search.controller import Controller
from rt3_tvm.search.journal import Journal
from rt3_tvm.search.options import SearchOptions
from rt3_tvm.search.phase import Trained
from rt3_tvm.search.progress import Silent
from rt3_tvm.search.reward import ACCURACY_MIN_OF_DENSE, Reward, runs_of
from rt3_tvm.search.setting import Setting
from rt3_tvm.search.space import Choice, Space
from rt3_tvm.search.store import Store, take
from rt3_tvm.search.strategies import Evolution, RandomSearch, Strategy
from rt3_tvm.search.training import seed_of
from rt3_tvm.search.workers import MakeTrainer, Workers

OpenWorkers = Callable[[MakeTrainer, int], Workers]


class Episodes:
    """The children of one search: what was proposed, and what came of it."""

    def __init__(
        self, trained: Trained, space: Space, setting: Setting, journal: Journal, open_workers: OpenWorkers
    ) -> None:
        self.trained, self.space, self.setting, self.journal = trained, space, setting, journal
        self.open_workers = open_workers
        self.reward = _reward(trained, space, setting)
        self.known: dict[str, dict[str, Any]] = {r["child"]: r for r in journal.of("child")}
        self.before = journal.of("episode")
        self.workers: Workers | None = None
        self.seen: set[str] = set()
        self.number = 0
        self.best: tuple[float, Choice] | None = None

    def run(self) -> Choice:
        """Propose and score as many children as were asked for, and return the best. What the journal has is not trained again.

        Raises
        ------
        JobError
            No child met the deadline.
        """
        o = self.setting.options
        strategy = _strategy(self.space, o)
        try:
            with self.trained.progress.task("children", o.children) as tick:
                while self.number < o.children:
                    children = strategy.propose(min(o.episode_batch, o.children - self.number))
                    self._score(children)
                    strategy.learn(children, [self._end_episode(child, tick) for child in children])
        finally:
            if self.workers is not None:
                self.workers.close()
        if self.best is None:
            raise JobError(self._why_none())
        self.trained.progress.say(f"best of {o.children} children: reward {self.best[0]:.4f}")
        return self.best[1]

    def _score(self, children: list[Choice]) -> None:
        """Train those that can be in time and are not known."""
        unknown = {c.key: c for c in children if c.key not in self.known and not self._misses(c)}
        if not unknown:
            return
        if self.workers is None:
            t = self.trained
            make = partial(child_trainer, self.setting, self.space, t.store, t.sentences)
            self.workers = self.open_workers(make, self.setting.options.threads)
        for key, scores in zip(unknown, self.workers.train(list(unknown.values())), strict=True):
            self.journal.add({"kind": "child", "child": key, "seed": self.setting.options.seed} | scores)
            self.known[key] = self.journal.records[-1]

    def _why_none(self) -> str:
        """Return why no child is the best."""
        count = self.setting.options.children
        failed = [r for r in self.known.values() if "failed" in r]
        if failed:
            return f"none of {count} children could be trained; the last: {failed[-1]['failed']}: lower `pruned_rate`"
        return f"none of {count} children met the deadline: propose more (`children`), or allow more time"

    def _misses(self, child: Choice) -> bool:
        deadline = self.space.deadline_s
        return bool(deadline) and any(s > deadline for s in self.space.latencies(child))

    def _end_episode(self, child: Choice, tick: Callable[[], None]) -> float:
        """Write what a proposal came to, and return its reward; a child that was scored before counts again."""
        seconds = self.space.latencies(child)
        runs = self.reward.runs(seconds)
        accuracy = self.known.get(child.key, {}).get("accuracy")
        reward = self.reward.missed(runs) if accuracy is None else self.reward(runs, accuracy)
        if self.number < len(self.before):
            written = self.before[self.number]
            if written["child"] != child.key or written["reward"] != reward:
                raise Rt3Error(
                    f"{self.journal.path}: episode {self.number} does not follow from what is before it: begin anew "
                    "with `restart`"
                )
        else:
            row = {
                "kind": "episode",
                "number": self.number,
                "child": child.key,
                "latency_ms": [1e3 * s for s in seconds],
                "runs": runs,
                "accuracy": accuracy,
                "reward": reward,
                "repeated": child.key in self.seen,
            }
            self.journal.add(row)
        self.seen.add(child.key)
        if accuracy is not None and (self.best is None or reward > self.best[0]):
            self.best = reward, child
        self.number += 1
        tick()
        return reward


def _strategy(space: Space, options: SearchOptions) -> Strategy:
    seed = seed_of(options.seed, "strategy")
    if options.search == "rl":
        return Controller(space, options.controller, seed)
    return Evolution(space, seed) if options.search == "evolution" else RandomSearch(space, seed)


def _reward(trained: Trained, space: Space, setting: Setting) -> Reward:
    """Return the reward; constants that were not given follow from the dense model and from the space."""
    r = setting.options.reward
    dense = r.accuracy_dense
    if dense is None:
        dense = float(trained.figures["dense"]["valid"]["accuracy"])
    least = r.accuracy_min if r.accuracy_min is not None else ACCURACY_MIN_OF_DENSE * dense
    if least >= dense:
        raise Rt3Error(f"accuracy floor {least:g} must be below the dense model's {dense:g}")
    ladder = space.ladders[0]
    densest = Choice(ladder, tuple(tuple(o[0] for o in level) for level in space.options(ladder)))
    runs = runs_of(r, setting.states, space.latencies(densest)) or 1.0
    offset = runs if r.runs_offset is None else r.runs_offset
    scale = runs if r.runs_scale is None else r.runs_scale
    return Reward(least, dense, setting.options.level_weights, offset, scale, r, setting.states)


def child_trainer(setting: Setting, space: Space, store: Store, sentences: tuple[str, ...]) -> ChildTrainer:
    """Return what trains children, from the states on disk."""
    dense, backbone = (store.read(name) for name in ("dense", "backbone"))
    assert dense is not None and backbone is not None
    model, teacher = (models.build(models.describe(setting.model)) for _ in range(2))
    teacher.load_state_dict(take(dense[0], "model/"))
    trained = Trained(model, setting.data, setting.options, store, Silent(), sentences, teacher)
    start = take(backbone[0], "model/")
    model.load_state_dict(start)
    return ChildTrainer(model, start, teacher, setting.data, space, setting.options, trained.training(), sentences)
