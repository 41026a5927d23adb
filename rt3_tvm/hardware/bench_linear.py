"""``rt3 bench linear``: one ``pattern_linear`` against the best dense linear layer found here."""

import ctypes
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rt3_tvm import device as devices
from rt3_tvm.codegen.kernels import KernelTable
from rt3_tvm.codegen.link import choose_compiler, run_compiler
from rt3_tvm.errors import Rt3Error
from rt3_tvm.hardware.rivals import installed_rivals
from rt3_tvm.pattern import PatternShape, SparseMatrix, cut_backbone, cut_patterns
from rt3_tvm.schedules import DECISIONS_ATTR, KERNEL_ATTR, SCHEDULES
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.few_tokens import few_token_linear, few_tokens
from rt3_tvm.schedules.linear_decisions import (
    TOKEN_TILE,
    LinearDecisions,
    LinearPacking,
    LinearShape,
    choose_decisions,
    choose_packing,
    padded_kept,
)
from rt3_tvm.schedules.packing import PackedLinear, offset_dtype, pack_linear
from rt3_tvm.schedules.pattern_linear import linear_algorithm
from rt3_tvm.timing import Timing, time_interleaved
from rt3_tvm.transform.layouts import to_tiles

PATTERNS = 64
ROUNDS = 15
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
            raise Rt3Error("--rows, --cols and --tokens must be at least 1, --group at least 0")
        if not 0.0 <= self.sparsity < 1.0:
            raise Rt3Error(f"sparsity {self.sparsity:g} is outside [0, 1)")
        if self.group and self.rows % self.group:
            raise Rt3Error(f"--group {self.group} does not divide --rows {self.rows}")


@dataclass(frozen=True)
class LinearResult:
    """What was measured: Timing of each contestant by name, the sparsity that was reached, the largest error."""

    case: LinearCase
    sparsity: float
    ours: Timing
    dense: dict[str, Timing]
    max_abs_err: float
    gflops: float
    family: str
    packing: LinearPacking
    decisions: LinearDecisions

    @property
    def dense_name(self) -> str:
        """The fastest dense rival."""
        return min(self.dense, key=lambda name: self.dense[name].median)

    def to_json(self) -> dict[str, object]:
        """Return the result for ``--json``."""
        best = self.dense[self.dense_name]
        return {
            "ours_ms": self.ours.median,
            "dense_ms": best.median,
            "dense_name": self.dense_name,
            "speedup": best.median / self.ours.median,
            "sparsity": self.sparsity,
            "group": self.case.group,
            "max_abs_err": self.max_abs_err,
            "rows": self.case.rows,
            "cols": self.case.cols,
            "tokens": self.case.tokens,
            "gflops": self.gflops,
            "ours_spread_ms": [self.ours.low, self.ours.high],
            "dense_spread_ms": [best.low, best.high],
            "kernel": self.family,
            "packing": self.packing.__dict__,
            "decisions": self.decisions.__dict__,
        }


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a copy that begins on a cache line, as everything in a bundle does; NumPy promises only 16 bytes."""
    raw = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def from_tiles(y: np.ndarray, tokens: int) -> np.ndarray:
    """Return a feature-major (tiles, features, 16) array as (tokens, features)."""
    return y.transpose(0, 2, 1).reshape(-1, y.shape[1])[:tokens]


def _sparse_weight(weight: np.ndarray, case: LinearCase) -> SparseMatrix:
    """Return patterns of one block row per group that reach the sparsity as closely as whole columns can."""
    backbone = cut_backbone(weight, 0.0, case.rows)
    shape = PatternShape(case.group, case.cols, case.group)
    return cut_patterns(weight, backbone, shape, 1.0 - case.sparsity, PATTERNS)


def bench_linear(case: LinearCase, rounds: int = ROUNDS, rivals: list[str] | None = None) -> LinearResult:
    """Time one layer on one thread against every dense rival that is installed, on the same inputs."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((case.rows, case.cols)) / np.sqrt(case.cols)).astype(np.float32)
    bias = rng.standard_normal(case.rows).astype(np.float32)
    x = rng.standard_normal((case.tokens, case.cols)).astype(np.float32)
    if case.group:
        matrix = _sparse_weight(weight, case)
        columns, valid = matrix.group_columns()
        weight = weight * matrix.mask()
        sparsity = 1.0 - matrix.density
    else:
        columns = np.arange(case.cols, dtype=np.int32)[None]
        valid, sparsity = np.ones_like(columns, dtype=np.bool_), 0.0
    contestants: dict[str, Callable[[], object]] = {
        name: rival.linear(aligned(x), aligned(weight), aligned(bias), 1)
        for name, rival in installed_rivals(rivals).items()
    }
    with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
        ours = _Ours(case, columns, valid, weight, bias, x, Path(folder))
        ours()
        error = np.abs(ours.result() - (x.astype(np.float64) @ weight.T.astype(np.float64) + bias)).max()
        times = time_interleaved({"rt3": ours, **contestants}, rounds)
    mine = times.pop("rt3")
    flops = 2.0 * case.rows * case.cols * case.tokens * (1.0 - sparsity)
    return LinearResult(
        case,
        sparsity,
        mine,
        times,
        float(error),
        flops / mine.median / 1e6,
        ours.family,
        ours.packing,
        ours.decisions,
    )


class _Ours:
    """Our kernel, compiled and linked as in a bundle, called through ctypes."""

    def __init__(
        self,
        case: LinearCase,
        columns: np.ndarray,
        valid: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray,
        x: np.ndarray,
        folder: Path,
    ) -> None:
        cluster = devices.load("host").cluster
        cpu = CpuShape.of(cluster)
        group, kept = case.rows // columns.shape[0], columns.shape[1]
        self.packing = choose_packing(cpu, case.rows, case.cols, kept, group)
        tiles = -(-case.tokens // TOKEN_TILE)
        shape = LinearShape(
            tiles, case.rows, case.cols, padded_kept(kept, self.packing), group, offset_dtype(case.cols)
        )
        self.decisions = choose_decisions(cpu, shape, self.packing)
        self.family = "dense_linear" if shape.dense else "pattern_linear"
        if few_tokens(self.packing, case.cols, 1, case.tokens):
            self.family, func = "few_token_linear", few_token_linear(shape, self.packing, case.tokens, "none")
        else:
            func = linear_algorithm(shape, self.packing, self.decisions, cpu.lanes, "none")
            func = func.with_attr(DECISIONS_ATTR, self.decisions.__dict__)
        family = self.family
        func = func.with_attr(KERNEL_ATTR, family)
        table = KernelTable()
        table.index(SCHEDULES[family].schedule(func, cpu).with_attr(KERNEL_ATTR, family))
        target = cluster.target_dict()
        table.compile(target, folder / "kernel.o")
        compiler = choose_compiler(str(target["mtriple"]), None, str(target["mtriple"]).split("-", 1)[0])
        run_compiler(compiler, ["-shared", "-o", "kernel.so", "kernel.o"], folder)
        self._function = getattr(ctypes.CDLL(str(folder / "kernel.so")), table.kernels[0].symbol)
        packed: PackedLinear = pack_linear(weight, columns, valid, bias, self.packing)
        self._y = aligned(np.zeros((tiles, case.rows, TOKEN_TILE), np.float32))
        self._arrays = [*map(aligned, (to_tiles(x[None]), packed.values, packed.offsets, packed.bias)), self._y]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in self._arrays]
        self._arguments = (*pointers, ctypes.c_int32(0), ctypes.c_int32(table.kernels[0].tasks))
        self._tokens = case.tokens

    def __call__(self) -> None:
        self._function(*self._arguments)

    def result(self) -> np.ndarray:
        """Return the last result as (tokens, rows)."""
        return from_tiles(self._y, self._tokens)
