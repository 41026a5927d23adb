"""RT3's controller: a recurrent policy that chooses a sparsity for each level, then a pattern set for each matrix at it.

Trained by REINFORCE (Williams 1992) with a moving-average baseline and an entropy term. Source: DAC 2021, arXiv 2102.06336.
"""

from collections.abc import Sequence

import torch
from torch import nn

from rt3_tvm.search.options import ControllerOptions
from rt3_tvm.search.space import Choice, Space


class Policy(nn.Module):
    """An LSTM cell that sees what was chosen before; what may not be chosen has probability 0.

    A step's input is the embedding of the choice before it plus that of the step itself.
    """

    def __init__(self, space: Space, hidden: int) -> None:
        super().__init__()
        self.space = space
        most = max(len(space.grid), *(len(rs) for rs in space.recipes))
        steps = space.levels * (1 + len(space.layers))
        self.first = nn.Parameter(torch.zeros(hidden))
        self.chosen = nn.Embedding(most, hidden)
        self.step = nn.Embedding(steps, hidden)
        self.cell = nn.LSTMCell(hidden, hidden)
        self.sparsity = nn.Linear(hidden, len(space.grid))
        self.sets = nn.ModuleList(nn.Linear(hidden, len(rs)) for rs in space.recipes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def sample(self, generator: torch.Generator) -> Choice:
        """Return a child."""
        with torch.no_grad():
            return self._walk(None, generator)[0]

    def score(self, choice: Choice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probability of a child, and the mean entropy of the steps that led to it."""
        _, log_probabilities, entropies = self._walk(choice, None)
        return torch.stack(log_probabilities).sum(), torch.stack(entropies).mean()

    def _walk(
        self, given: Choice | None, generator: torch.Generator | None
    ) -> tuple[Choice, list[torch.Tensor], list[torch.Tensor]]:
        """Take every step, as given or sampled."""
        hidden = self.first.shape[0]
        state = (torch.zeros(1, hidden), torch.zeros(1, hidden))
        log_probabilities: list[torch.Tensor] = []
        entropies: list[torch.Tensor] = []
        before: torch.Tensor = self.first
        step = 0

        def choose(head: nn.Module, allowed: Sequence[int], taken: int | None) -> int:
            nonlocal state, before, step
            state = self.cell((before + self.step.weight[step])[None], state)
            logits = head(state[0])[0][list(allowed)]
            scores = torch.log_softmax(logits, dim=0)
            index = (
                int(torch.multinomial(scores.exp(), 1, generator=generator)) if taken is None else allowed.index(taken)
            )
            log_probabilities.append(scores[index])
            entropies.append(-(scores.exp() * scores).sum())
            before, step = self.chosen.weight[allowed[index]], step + 1
            return allowed[index]

        ladder: list[int] = []
        for level in range(self.space.levels):
            rest = [x for x in self.space.ladders if list(x[:level]) == ladder]
            allowed = sorted({x[level] for x in rest})
            ladder.append(choose(self.sparsity, allowed, given.sparsity[level] if given else None))
        sets = []
        for level, options in enumerate(self.space.options(ladder)):
            taken = given.sets[level] if given else [None] * len(options)
            sets.append(tuple(choose(self.sets[m], o, taken[m]) for m, o in enumerate(options)))
        return Choice(tuple(ladder), tuple(sets)), log_probabilities, entropies


class Controller:
    """REINFORCE on the policy."""

    def __init__(self, space: Space, options: ControllerOptions, seed: int) -> None:
        self.options = options
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.policy = Policy(space, options.hidden)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=options.rate)
        self.baseline: float | None = None

    def propose(self, count: int) -> list[Choice]:
        """Return the next children."""
        return [self.policy.sample(self.generator) for _ in range(count)]

    def learn(self, children: Sequence[Choice], rewards: Sequence[float]) -> None:
        """Take one step towards children whose reward is above the baseline, then move the baseline."""
        mean = sum(rewards) / len(rewards)
        baseline = mean if self.baseline is None else self.baseline
        loss = torch.zeros(())
        for child, reward in zip(children, rewards, strict=True):
            log_probability, entropy = self.policy.score(child)
            loss = loss - (reward - baseline) * log_probability - self.options.entropy * entropy
        self.optimizer.zero_grad()
        (loss / len(children)).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 5.0)
        self.optimizer.step()
        memory = self.options.baseline
        self.baseline = memory * baseline + (1.0 - memory) * mean
