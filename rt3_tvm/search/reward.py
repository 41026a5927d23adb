"""RT3's reward: accuracy between a floor and the dense model's, plus what a charge is good for.

Source: the constants of RT3's public code (DAC 2021, arXiv 2102.06336); accuracy is that of the validation split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rt3_tvm import rt3
from rt3_tvm.energy.battery import runs_per_charge
from rt3_tvm.energy.power import PowerState
from rt3_tvm.search.options import RewardOptions

ACCURACY_MIN_OF_DENSE = rt3.ACCURACY_MIN / rt3.ACCURACY_DENSE
"""RT3's A_min over its A_orig."""


@dataclass(frozen=True)
class Reward:
    """The reward with every constant known.

    Parameters
    ----------
    weights
        Of the levels in the accuracy.
    states
        Power at each level's frequency; empty where R_runs is left out.
    """

    accuracy_min: float
    accuracy_dense: float
    weights: tuple[float, ...]
    runs_offset: float
    runs_scale: float
    options: RewardOptions
    states: tuple[PowerState, ...] = ()

    def runs(self, seconds: Sequence[float]) -> float:
        """Return the inferences of a charge, each level spending its share; 0 where power is left out."""
        return runs_of(self.options, self.states, seconds)

    def of_runs(self, runs: float) -> float:
        """Return R_runs."""
        if not self.states:
            return 0.0
        return self.options.runs_weight * (runs - self.runs_offset) / self.runs_scale

    def missed(self, runs: float) -> float:
        """Return the reward of a child that misses a deadline."""
        return self.options.missed + self.of_runs(runs)

    def __call__(self, runs: float, accuracies: Sequence[float]) -> float:
        """Return the reward of a child that meets its deadlines."""
        mean = sum(w * a for w, a in zip(self.weights, accuracies, strict=True)) / sum(self.weights)
        scaled = (mean - self.accuracy_min) / (self.accuracy_dense - self.accuracy_min)
        falling = all(a > b for a, b in pairwise(accuracies))
        return scaled + self.of_runs(runs) - (0.0 if falling else self.options.order_penalty)


def runs_of(options: RewardOptions, states: Sequence[PowerState], seconds: Sequence[float]) -> float:
    """Return the inferences of a charge; 0 where power is not known."""
    return runs_per_charge(options.battery_j, states, seconds, options.shares) if states else 0.0
