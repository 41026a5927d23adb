"""Latency models: what a level takes at a frequency. Modelled, never measured: callers say so."""

from collections.abc import Sequence
from dataclasses import dataclass

from rt3_tvm.errors import Rt3Error

RT3_REFERENCE_HZ = 3.0e9
"""Clock of the CPU that RT3's constants are of."""
RT3_MS_PER_MULTIPLY, RT3_MS_PER_ADD = 0.014370e-4, 0.014575e-4
"""ms of a multiplication and of an addition there. Source: RT3's public code (DAC 2021, arXiv 2102.06336)."""


@dataclass(frozen=True)
class MatrixWork:
    """One pruned matrix as RT3 counts it: (rows, cols) weights, and how many additions the dense product saves."""

    rows: int
    cols: int
    saved_adds: int

    @property
    def weights(self) -> int:
        """Weights of the dense matrix."""
        return self.rows * self.cols


@dataclass(frozen=True)
class Rt3Latency:
    """RT3's analytic model: multiplications and additions of the kept weights, at a rate that follows the clock."""

    matrices: tuple[MatrixWork, ...]

    def seconds(self, hz: float, sparsity: float) -> float:
        """Return the s of one inference with the same ``sparsity``, in [0, 1), in every matrix."""
        weights, adds = self._work()
        ms = RT3_MS_PER_MULTIPLY * weights * (1 - sparsity) + RT3_MS_PER_ADD * (adds - weights * sparsity)
        return ms * 1e-3 * RT3_REFERENCE_HZ / hz

    def sparsity_for(self, hz: float, deadline: float, at_least: float = 0.0) -> float:
        """Return the smallest sparsity, but ``at_least``, whose latency at ``hz`` is within ``deadline`` s.

        Raises
        ------
        Rt3Error
            No sparsity below 1 is enough.
        """
        weights, adds = self._work()
        dense = RT3_MS_PER_MULTIPLY * weights + RT3_MS_PER_ADD * adds
        budget = deadline * 1e3 * hz / RT3_REFERENCE_HZ
        needed = (dense - budget) / (weights * (RT3_MS_PER_MULTIPLY + RT3_MS_PER_ADD))
        if needed >= 1.0:
            raise Rt3Error(f"no sparsity meets {deadline * 1e3:g} ms at {hz / 1e9:g} GHz")
        return max(at_least, needed)

    def _work(self) -> tuple[int, int]:
        weights = sum(m.weights for m in self.matrices)
        return weights, weights - sum(m.saved_adds for m in self.matrices)


def language_model_work(vocabulary: int, features: int, feedforward: int, layers: int) -> tuple[MatrixWork, ...]:
    """Return the ten matrices of RT3's language model (``transformer_lm``), counted as its public code does."""
    per_column: Sequence[tuple[int, int]] = (
        (vocabulary, features),
        *((3 * features, features), (features, features)) * layers,
    )
    per_row: Sequence[tuple[int, int]] = (
        (vocabulary, features),
        *((feedforward, features), (features, feedforward)) * layers,
    )
    return (
        *(MatrixWork(rows, cols, saved_adds=cols) for rows, cols in per_column),
        *(MatrixWork(rows, cols, saved_adds=rows) for rows, cols in per_row),
    )
