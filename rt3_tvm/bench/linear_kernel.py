"""One linear layer's kernel of ours, compiled and linked as in a bundle, to be timed by itself."""

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from rt3_tvm.bench.kernel import Kernels, aligned, host, outputs_of, pointers_to
from rt3_tvm.errors import Rt3Error
from rt3_tvm.pattern import QUAD
from rt3_tvm.schedules import kernel
from rt3_tvm.schedules.convert import ConversionShape
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.int8_packing import pack_int8
from rt3_tvm.schedules.layout import ELEMENT_TYPES, FEATURE_MAJOR, REAL
from rt3_tvm.schedules.linear_plan import LinearPlan, MatrixShape, TokenCount, plan_linear
from rt3_tvm.schedules.packing import pack_linear
from rt3_tvm.schedules.quantise import QuantiseShape


@dataclass(frozen=True)
class LinearCase:
    """One layer: (rows, cols) weight, tokens, sparsity in [0, 1), group V (0: the dense kernel), the element type's name.

    ``quads``: whether its columns are kept in fours. As in a bundle, a layer that gains nothing from its element type is
    multiplied in a wider one.
    """

    rows: int
    cols: int
    tokens: int
    sparsity: float
    group: int
    dtype: str = REAL.dtype
    quads: bool = False

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.tokens) < 1 or self.group < 0:
            raise Rt3Error("`rows`, `cols` and `tokens` must be at least 1, `group` at least 0")
        if not 0.0 <= self.sparsity < 1.0:
            raise Rt3Error(f"sparsity {self.sparsity:g} is outside [0, 1)")
        if self.group and self.rows % self.group:
            raise Rt3Error(f"`group` {self.group} does not divide `rows` {self.rows}")
        if self.quads and (self.cols % QUAD or not self.group):
            raise Rt3Error(f"`quads` of {self.cols} columns: `cols` must be a multiple of {QUAD}, `group` at least 1")
        here = [element.dtype for element in host().elements]
        if self.dtype not in here:
            raise Rt3Error(f"`dtype` {self.dtype} is not for this machine: choose from {', '.join(here)}")


class LinearKernel:
    """Our kernels of a layer, called through ctypes: on the same weights again, or each time on the next of many copies.

    What brings float32 activations into the element type is a part of it, though layers that read one tensor share that.
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
        matrix = MatrixShape(case.rows, case.cols, columns.shape[1], case.rows // len(columns), case.quads)
        self.plan = plan = plan_linear(cpu, matrix, TokenCount(1, case.tokens), ELEMENT_TYPES[case.dtype])
        if plan.matrix.dense:  # as in a bundle: patterns that would be slower than all columns
            columns = np.arange(case.cols, dtype=np.int32)[None]
            valid = np.ones_like(columns, dtype=np.bool_)
        parts = [kernel(plan.family, plan, part, "none", cpu) for part in plan.parts]
        self._run = Kernels(parts, cpu, folder)
        packed = _packed(plan, weight, columns, valid, bias)
        self._y = aligned(np.zeros(FEATURE_MAJOR.shape(plan.tokens.tiles(), case.rows), REAL.dtype))
        tiled = aligned(FEATURE_MAJOR.pack(x[None]))
        self.weight_bytes = sum(array.nbytes for array in packed)
        self._convert, read = _conversion(plan, cpu, folder)
        self._tiled = pointers_to([tiled, *read])
        self._arrays = [[*(read or [tiled]), *map(aligned, packed), self._y] for _ in range(copies)]
        arguments = [pointers_to(arrays) for arrays in self._arrays]
        self._next = cycle(arguments)
        self._first = arguments[0]
        self._kept = read, tiled
        self._tokens = case.tokens

    def __call__(self) -> None:
        """Run on the first copy of the weights."""
        self._on(self._first)

    def cold(self) -> None:
        """Run on the next copy of the weights."""
        self._on(next(self._next))

    def _on(self, pointers: list[Any]) -> None:
        if self._convert is not None:
            self._convert(self._tiled)
        self._run(pointers)

    def result(self) -> np.ndarray:
        """Return the last result as (tokens, rows)."""
        return FEATURE_MAJOR.unpack(self._y, 1, self._tokens)[0]


def _packed(plan: LinearPlan, weight: Any, columns: Any, valid: Any, bias: Any) -> list[np.ndarray]:
    """Return what the kernels of a plan take of a weight, in their order."""
    if plan.quantised is None:
        packed: Any = pack_linear(weight, columns, valid, bias, plan.packing, plan.element)
    else:
        facts = plan.packing, DOT_PRODUCTS[plan.quantised.dot]
        packed = pack_int8(weight, columns, valid, bias, *facts, quads=plan.matrix.quads)
    return [getattr(packed, name) for name in plan.weights]


def _conversion(plan: LinearPlan, cpu: CpuShape, folder: Path) -> tuple[Kernels | None, list[np.ndarray]]:
    """Return what writes the activations that a plan reads, if it needs something, and the arrays that it writes."""
    tiles, cols = plan.tokens.tiles(), plan.matrix.cols
    if plan.quantised is not None:
        func = kernel("quantise", QuantiseShape.of(tiles, cols, plan.quantised))
    elif plan.layout != FEATURE_MAJOR:
        func = kernel("convert", ConversionShape(FEATURE_MAJOR, plan.layout, tiles, cols))
    else:
        return None, []
    place = folder / "conversion"
    place.mkdir()
    return Kernels([func], cpu, place), outputs_of(func, 1)
