"""One linear layer's kernel of ours, compiled and linked as in a bundle, to be timed by itself."""

import ctypes
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from rt3_tvm import device as devices
from rt3_tvm.codegen.kernels import KernelTable
from rt3_tvm.codegen.link import choose_compiler, run_compiler
from rt3_tvm.errors import Rt3Error
from rt3_tvm.schedules import KERNEL_ATTR, SCHEDULES
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import REAL
from rt3_tvm.schedules.linear_plan import MatrixShape, TokenCount, plan_linear
from rt3_tvm.schedules.packing import PackedLinear, pack_linear

CACHE_LINE = 64


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


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a copy that begins on a cache line, as everything in a bundle does; NumPy promises only 16 bytes."""
    raw = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


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
        cluster = devices.load("host").cluster
        cpu = CpuShape.of(cluster)
        matrix = MatrixShape(case.rows, case.cols, columns.shape[1], case.rows // len(columns))
        self.plan = plan_linear(cpu, matrix, TokenCount(1, case.tokens))
        if self.plan.matrix.dense:  # as in a bundle: patterns that would be slower than all columns
            columns = np.arange(case.cols, dtype=np.int32)[None]
            valid = np.ones_like(columns, dtype=np.bool_)
        table = KernelTable()
        for _part, func in self.plan.kernels("none", cpu):
            marked = func.with_attr(KERNEL_ATTR, self.plan.family)
            scheduled = SCHEDULES[self.plan.family].schedule(marked, cpu)
            table.index(scheduled.with_attr(KERNEL_ATTR, self.plan.family))
        target = cluster.target_dict()
        table.compile(target, folder / "kernel.o")
        compiler = choose_compiler(str(target["mtriple"]), None, str(target["mtriple"]).split("-", 1)[0])
        run_compiler(compiler, ["-shared", "-o", "kernel.so", "kernel.o"], folder)
        library = ctypes.CDLL(str(folder / "kernel.so"))
        self._functions = [(getattr(library, k.symbol), ctypes.c_int32(k.tasks)) for k in table.kernels]
        packed: PackedLinear = pack_linear(weight, columns, valid, bias, self.plan.packing)
        self._y = aligned(np.zeros(self.plan.layout.shape(self.plan.tiles, case.rows), REAL.dtype))
        tiled = aligned(self.plan.layout.pack(x[None]))
        self.weight_bytes = packed.values.nbytes + packed.offsets.nbytes + packed.bias.nbytes
        self._arrays = [
            [tiled, *map(aligned, (packed.values, packed.offsets, packed.bias)), self._y] for _ in range(copies)
        ]
        arguments = [[ctypes.c_void_p(a.ctypes.data) for a in arrays] for arrays in self._arrays]
        self._next = cycle(arguments)
        self._first = arguments[0]
        self._tokens = case.tokens

    def __call__(self) -> None:
        """Run on the first copy of the weights."""
        self._run(self._first)

    def cold(self) -> None:
        """Run on the next copy of the weights."""
        self._run(next(self._next))

    def _run(self, arguments: list[ctypes.c_void_p]) -> None:
        for function, tasks in self._functions:
            function(*arguments, ctypes.c_int32(0), tasks)

    def result(self) -> np.ndarray:
        """Return the last result as (tokens, rows)."""
        return self.plan.layout.unpack(self._y, 1, self._tokens)[0]
