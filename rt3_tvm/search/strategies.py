"""Ways to propose children: at random, by evolution; the third, RT3's controller, has a file of its own.

Each proposes some children, is told their rewards, and proposes the next. What it proposes follows from its seed and the rewards,
so that a journal replays it.
"""

import random
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from rt3_tvm.search.space import Choice, Space


class Strategy(Protocol):
    """What the search asks."""

    def propose(self, count: int) -> list[Choice]:
        """Return the next children."""

    def learn(self, children: Sequence[Choice], rewards: Sequence[float]) -> None:
        """Take the rewards of the children that were proposed last."""


def random_choice(space: Space, rng: random.Random) -> Choice:
    """Return a child that is drawn evenly: a ladder of sparsities, then a set for each matrix and level."""
    ladder = rng.choice(space.ladders)
    return Choice(ladder, tuple(tuple(rng.choice(o) for o in level) for level in space.options(ladder)))


class RandomSearch:
    """Children drawn evenly, whatever their rewards."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.rng = space, random.Random(seed)

    def propose(self, count: int) -> list[Choice]:
        """Return the next children."""
        return [random_choice(self.space, self.rng) for _ in range(count)]

    def learn(self, children: Sequence[Choice], rewards: Sequence[float]) -> None:
        """Do nothing."""


POPULATION, SAMPLE = 20, 5
"""Living children, and those of which the best has a child of its own."""


class Evolution:
    """Regularised evolution (Real et al., arXiv 1802.01548): the oldest child dies, the best of a sample has a mutant."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.rng = space, random.Random(seed)
        self.living: deque[tuple[float, Choice]] = deque(maxlen=POPULATION)

    def propose(self, count: int) -> list[Choice]:
        """Return the next children."""
        if len(self.living) < POPULATION:
            return [random_choice(self.space, self.rng) for _ in range(count)]
        parents = [max(self.rng.sample(list(self.living), SAMPLE), key=lambda p: p[0])[1] for _ in range(count)]
        return [self._mutant(parent) for parent in parents]

    def learn(self, children: Sequence[Choice], rewards: Sequence[float]) -> None:
        """Let the children live."""
        self.living.extend(zip(rewards, children, strict=True))

    def _mutant(self, parent: Choice) -> Choice:
        """Change one sparsity or one set; sets that a new ladder does not allow are drawn anew."""
        ladder, changed = parent.sparsity, (-1, -1)
        near = [x for x in self.space.ladders if sum(a != b for a, b in zip(x, ladder, strict=True)) == 1]
        if near and self.rng.random() < 0.5:
            ladder = self.rng.choice(near)
        else:
            changed = self.rng.randrange(self.space.levels), self.rng.randrange(len(self.space.layers))
        sets = []
        for level, (old, allowed) in enumerate(zip(parent.sets, self.space.options(ladder), strict=True)):
            pairs = enumerate(zip(old, allowed, strict=True))
            sets.append(tuple(self.rng.choice(o) if (level, m) == changed or r not in o else r for m, (r, o) in pairs))
        return Choice(ladder, tuple(sets))
