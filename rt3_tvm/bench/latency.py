"""``rt3 bench latency``: a table of latencies by matrix shape, group and density, measured on this machine.

Every kernel is measured twice. On the same weights again it runs from the caches: that part follows the clock. On a new copy of
the weights each time, more copies than the caches hold, it waits for memory: what that adds does not follow the clock.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import torch

from rt3_tvm import device as devices
from rt3_tvm.bench.clock import pinned
from rt3_tvm.bench.linear import sparse_weight
from rt3_tvm.bench.linear_kernel import LinearCase, LinearKernel
from rt3_tvm.bench.options import LatencyOptions
from rt3_tvm.bench.peak import clock_hz
from rt3_tvm.codegen import CompileOptions, compile_checkpoint
from rt3_tvm.energy.latency import DENSE_GROUP, TableLatency, TableRow
from rt3_tvm.energy.loads import SMALLEST
from rt3_tvm.errors import Rt3Error
from rt3_tvm.export import find_linears
from rt3_tvm.prune import PruneOptions, prune_one_shot
from rt3_tvm.runtime import load
from rt3_tvm.schedules import LINEAR_FAMILIES
from rt3_tvm.timing import time_interleaved

ROUNDS = 9
COLD_FACTOR = 2
"""Copies of the weights take this many times the last cache."""
COLD_BYTES = 64 << 20
"""Least bytes of copies: a last cache may be larger than what the machine says of it."""


def bench_latency(
    model: torch.nn.Module, options: LatencyOptions, progress: Callable[[str], None] = lambda _: None
) -> TableLatency:
    """Return the table of a model's matrices on this machine, one thread.

    Raises
    ------
    Rt3Error
        The machine does not let us hold a frequency that was asked for.
    """
    shapes = sorted({layer.shape for layer in find_linears(model) if min(layer.shape) >= SMALLEST})
    if not shapes:
        raise Rt3Error(f"the model has no linear layer of {SMALLEST}x{SMALLEST} or more")
    rows: list[TableRow] = []
    for hz in options.frequencies or (0.0,):
        with pinned(hz) if hz else nullcontext():
            clock = hz or clock_hz()
            progress(f"everything but the linear layers, {clock / 1e9:.3f} GHz")
            rows.append(TableRow(0, 0, DENSE_GROUP, 1.0, clock, _rest_seconds(model, options.tokens), 0.0))
            for case in _cases(shapes, options):
                progress(f"{case.rows}x{case.cols}, V={case.group}, sparsity {case.sparsity:g}, {case.dtype}")
                rows.append(_measure(case, clock))
    return TableLatency(devices.load("host").cluster.core, options.tokens, 1, tuple(rows))


def _cases(shapes: list[tuple[int, int]], options: LatencyOptions) -> Iterator[LinearCase]:
    for dtype, (rows, cols) in product(options.dtype, shapes):
        yield LinearCase(rows, cols, options.tokens, 0.0, DENSE_GROUP, dtype)
        for group, sparsity in product(options.groups, options.sparsity):
            if rows % group == 0:
                yield LinearCase(rows, cols, options.tokens, sparsity, group, dtype)


def _measure(case: LinearCase, hz: float) -> TableRow:
    """Time one kernel on warm and on cold weights, taking turns."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((case.rows, case.cols)).astype(np.float32)
    if case.group:
        matrix = sparse_weight(weight, case)
        (columns, valid), density = matrix.group_columns(), matrix.density
    else:
        columns, density = np.arange(case.cols, dtype=np.int32)[None], 1.0
        valid = np.ones_like(columns, dtype=np.bool_)
    bias = np.zeros(case.rows, np.float32)
    x = rng.standard_normal((case.tokens, case.cols)).astype(np.float32)
    cluster = devices.load("host").cluster
    last_cache = max(COLD_BYTES, COLD_FACTOR * (cluster.l3_bytes or cluster.l2_bytes))
    copies = max(2, -(-last_cache // max(1, round(4 * density * case.rows * case.cols))))
    with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
        kernel = LinearKernel(case, columns, valid, weight, bias, x, Path(folder), copies)
        times = time_interleaved({"warm": kernel, "cold": kernel.cold}, ROUNDS)
    warm, cold = times["warm"].median * 1e-3, times["cold"].median * 1e-3
    return TableRow(case.rows, case.cols, case.group, density, hz, warm, max(0.0, cold - warm), case.dtype)


def _rest_seconds(model: torch.nn.Module, tokens: int) -> float:
    """Return what the kernels of a compiled model take that are no linear layers of the table."""
    checkpoint = prune_one_shot(model, PruneOptions((0.5,)))
    with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
        path = Path(folder) / "rest.so"
        compile_checkpoint(checkpoint, path, CompileOptions(frequencies=(1e9,), lengths=(tokens,)))
        with load(path) as bundle:
            bundle.set_threads(1)
            facts = bundle.metadata
            steps = facts["variants"][0]["steps"]
            inputs = bundle.zeros(bundle.max_length)
            samples = np.array([bundle.profile(**inputs) for _ in range(ROUNDS)])
    seconds = np.median(samples, axis=0)
    shapes = {name: row["shape"] for name, row in facts["matrices"].items()}
    counted = [
        facts["kernels"][kernel]["family"] in LINEAR_FAMILIES and min(shapes[matrix]) >= SMALLEST
        for kernel, matrix, _flops, _size in steps
    ]
    return float(seconds[~np.array(counted)].sum())
