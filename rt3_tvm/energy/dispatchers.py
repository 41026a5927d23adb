"""Who says which level an inference takes: the level table at once, or something that remembers."""

from dataclasses import dataclass
from typing import Protocol


class Dispatcher(Protocol):
    """What the simulation asks; ``index`` is always that of the operating point."""

    def steady(self, index: int) -> int | None:
        """Return the level of all inferences at an operating point; None where that depends on what was before."""

    def current(self, index: int) -> int:
        """Return the level that is set."""

    def take(self, index: int, now: float) -> int:
        """Return the level of an inference that begins at ``now`` s."""

    def finish(self, level: int, seconds: float) -> None:
        """Hear that an inference ended, and how long it took."""

    def state(self, now: float) -> bytes:
        """Return what the levels of later inferences depend on while the clock stays, times as seen from ``now``."""

    def shift(self, seconds: float) -> None:
        """Let time pass, with inferences after which the state is what it is."""


@dataclass(frozen=True)
class Table:
    """The level table, as ``rt3_set_frequency`` reads it: one level at each operating point, whatever was before."""

    level_of: tuple[int, ...]

    def steady(self, index: int) -> int:
        """Return its level."""
        return self.level_of[index]

    def current(self, index: int) -> int:
        """Return its level."""
        return self.level_of[index]

    def take(self, index: int, now: float) -> int:
        """Return its level."""
        return self.level_of[index]

    def finish(self, level: int, seconds: float) -> None:
        """Remember nothing."""

    def state(self, now: float) -> bytes:
        """Return the same, always."""
        return b""

    def shift(self, seconds: float) -> None:
        """Remember nothing."""


class Walk:
    """The inferences since the clock changed, walked one by one until the dispatcher is where it was before."""

    def __init__(self, dispatcher: Dispatcher, index: int) -> None:
        self.dispatcher, self.index = dispatcher, index
        self.levels: list[int] = []
        self.seen: dict[bytes, int] = {}
        self.ended = False

    def cycle(self, now: float) -> tuple[int, ...]:
        """Return the levels of the inferences that repeat from ``now`` on; empty where that is not known.

        One that depends on what was before is returned once: what is then left of the stretch is shorter.
        """
        level = self.dispatcher.steady(self.index)
        if level is not None:
            return (level,)
        if self.ended:
            return ()
        first = self.seen.setdefault(self.dispatcher.state(now), len(self.levels))
        self.ended = first < len(self.levels)
        return tuple(self.levels[first:])
