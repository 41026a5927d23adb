"""One linear layer's kernel of ours, compiled and linked as in a bundle, to be timed by itself."""

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from rt3_tvm.bench.kernel import Kernels, aligned, host, pointers_to
from rt3_tvm.errors import Rt3Error
from rt3_tvm.schedules import kernel
from rt3_tvm.schedules.layout import REAL
from rt3_tvm.schedules.linear_plan import MatrixShape, TokenCount, plan_linear
from rt3_tvm.schedules.packing import PackedLinear, pack_linear


@dataclass(frozen=True)
class LinearCase:
    """Sizes of one layer: (rows, cols) weight, tokens, sparsity in [0, 1), group V (0: the dense kernel)."""

    rows: int
    cols: int
    tokens: int
    sparsity: float
    group: int

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.tokens) < 1 or self.group < 0:
            raise Rt3Error("`rows`, `cols` and `tokens` must be at least 1, `group` at least 0")
        if not 0.0 <= self.sparsity < 1.0:
            raise Rt3Error(f"sparsity {self.sparsity:g} is outside [0, 1)")
        if self.group and self.rows % self.group:
            raise Rt3Error(f"`group` {self.group} does not divide `rows` {self.rows}")


class LinearKernel:
    """Our kernel, called through ctypes: on the same weights again, or each time on the next of many copies.

    ``copies``: how many copies of the weights ``cold`` goes through; with more than the caches hold, each call finds them cold.
    """

    def __init__(
        self,
        case: LinearCase,
        columns: np.ndarray,
        valid: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray,
        x: np.ndarray,
        folder: Path,
        copies: int = 1,
    ) -> None:
        cpu = host()
        matrix = MatrixShape(case.rows, case.cols, columns.shape[1], case.rows // len(columns))
        self.plan = plan = plan_linear(cpu, matrix, TokenCount(1, case.tokens))
        if plan.matrix.dense:  # as in a bundle: patterns that would be slower than all columns
            columns = np.arange(case.cols, dtype=np.int32)[None]
            valid = np.ones_like(columns, dtype=np.bool_)
        parts = [kernel(plan.family, plan, part, "none", cpu) for part in plan.parts]
        self._run = Kernels(parts, cpu, folder)
        packed: PackedLinear = pack_linear(weight, columns, valid, bias, self.plan.packing)
        self._y = aligned(np.zeros(self.plan.layout.shape(self.plan.tiles, case.rows), REAL.dtype))
        tiled = aligned(self.plan.layout.pack(x[None]))
        self.weight_bytes = packed.values.nbytes + packed.offsets.nbytes + packed.bias.nbytes
        self._arrays = [
            [tiled, *map(aligned, (packed.values, packed.offsets, packed.bias)), self._y] for _ in range(copies)
        ]
        arguments = [pointers_to(arrays) for arrays in self._arrays]
        self._next = cycle(arguments)
        self._first = arguments[0]
        self._tokens = case.tokens

    def __call__(self) -> None:
        """Run on the first copy of the weights."""
        self._run(self._first)

    def cold(self) -> None:
        """Run on the next copy of the weights."""
        self._run(next(self._next))

    def result(self) -> np.ndarray:
        """Return the last result as (tokens, rows)."""
        return self.plan.layout.unpack(self._y, 1, self._tokens)[0]
