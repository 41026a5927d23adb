"""Every row of SCHEDULES at the sizes of a model: time, operations and bytes of one call, on one thread."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rt3_tvm.bench.kernel import Kernels, aligned, host, outputs_of, pointers_to
from rt3_tvm.schedules import SCHEDULES, kernel
from rt3_tvm.schedules.examples import MINILM, Sizes
from rt3_tvm.timing import Timing, time_calls

CALLS = 20


@dataclass(frozen=True)
class FamilyTiming:
    """One family's example: Timing of a call, what it computes and touches."""

    family: str
    timing: Timing
    flops: float
    bytes: int

    @property
    def gflops(self) -> float:
        """GFLOP/s; 0 where a family computes nothing that is counted."""
        return self.flops / self.timing.median / 1e6

    @property
    def gbytes_per_s(self) -> float:
        """GB/s of what a call touches, most of it in caches."""
        return self.bytes / self.timing.median / 1e6


def time_families(rounds: int, sizes: Sizes = MINILM) -> Iterator[FamilyTiming]:
    """Yield the timing of each row."""
    cpu = host()
    for family, row in SCHEDULES.items():
        example = row.example(cpu, sizes)
        func = kernel(family, *example.arguments)
        arrays = [*map(aligned, example.inputs), *outputs_of(func, len(example.inputs))]
        with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
            timing = time_calls(partial(Kernels([func], cpu, Path(folder)), pointers_to(arrays)), rounds, CALLS)
        yield FamilyTiming(family, timing, row.flops(*example.arguments), row.bytes(func))
