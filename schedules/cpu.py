"""What the decisions of a kernel depend on: the sizes of a core, and what its inner loops cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import tvm

from rt3_tvm.device import Cluster
from rt3_tvm.device.types import ASSUMED_L1D_BYTES, ASSUMED_L2_BYTES
from rt3_tvm.schedules.layout import FLOAT16, FLOAT32, INT8, ElementType
from rt3_tvm.schedules.vector_math import VectorUnit

STACK_BYTES = 64 * 1024
"""A buffer that a kernel wants close at hand is no larger."""
KERNEL_STACK_BYTES = 96 * 1024
"""Buffers of a kernel that are no larger together live on the stack; musl gives its threads 128 KiB."""


@dataclass(frozen=True)
class CoreCost:
    """Cycles of what an inner loop of one element type is made of, throughput and not latency.

    Parameters
    ----------
    fma
        A vector multiply-add between others, as long kernels reach it: above 1 / pipes.
    load, broadcast, offset
        A vector from L1; one weight to all lanes; one index.
    l2_line
        A line of 64 bytes from L2 instead of L1, on top.
    visit
        Entering and leaving a register block, without its accumulators.
    iteration
        Counting, jumping and fetching ahead, once for all kept columns of an iteration.
    held
        Most accumulators and vectors of X that a register block has; 0 for as many as fit. In-order cores need registers for the
        loads in flight, and LLVM lays several iterations over each other there.
    zip
        Numbers of two vectors in turn, which kernels of int8 make their operands by.
    """

    fma: float = 0.6
    load: float = 0.5
    broadcast: float = 0.2
    offset: float = 0.25
    l2_line: float = 0.85
    visit: float = 10.0
    held: int = 0
    zip: float = 0.5
    iteration: float = 0.0


CORE_COSTS: dict[str, dict[ElementType, CoreCost]] = {
    # A Xeon in a virtual machine: a 512-bit load for each multiply-add does not keep up (`benchmarks/run.py peak`); fitted to
    # `benchmarks/run.py linear`, and those of int8 to all register blocks of 768 x 768, V=1 to 8 and dense.
    "avx512": {
        FLOAT32: CoreCost(fma=0.63, load=0.72, broadcast=0.21),
        INT8: CoreCost(fma=0.45, load=0.4, broadcast=0.15, zip=0.7),
    },
    # 16 registers, some of them for weights.
    # Their costs of int8 are as many instructions as those of float32, counted.
    "cortex-a7": {FLOAT32: CoreCost(held=12), INT8: CoreCost(1.2, 0.7, 0.4, 0.35, zip=0.45, held=4)},
    "cortex-a15": {FLOAT32: CoreCost(held=12), INT8: CoreCost(1.2, 0.7, 0.4, 0.35, zip=0.45, held=4)},
    # In-order cores: one 128-bit multiply-add a cycle on A55 (half on A53), a 128-bit load in two (A53: three).
    # From the vendor's optimisation guides as LLVM's scheduling models have them; modelled, not measured.
    "cortex-a53": {
        FLOAT32: CoreCost(2.0, load=3.0, broadcast=1.0, offset=1.0, l2_line=8.0, visit=20.0, held=20),
        INT8: CoreCost(4.5, load=3.0, broadcast=2.0, offset=1.0, l2_line=8.0, visit=20.0, held=8, zip=1.5),
    },
    "cortex-a55": {
        FLOAT32: CoreCost(1.0, load=2.0, broadcast=1.0, offset=1.0, l2_line=4.0, visit=20.0, held=20),
        FLOAT16: CoreCost(1.0, load=2.0, broadcast=0.5, offset=1.0, l2_line=4.0, visit=20.0, held=20),
        INT8: CoreCost(1.0, load=2.0, broadcast=0.5, offset=1.0, l2_line=4.0, visit=20.0, held=20, zip=1.0),
    },
    # LLVM moves loads of float16 further ahead on X1 than there are registers for.
    "cortex-x1": {FLOAT32: CoreCost(), FLOAT16: CoreCost(broadcast=0.1, held=20), INT8: CoreCost(0.5, broadcast=0.12)},
}
"""Cores that differ from the default, two multiply-adds and two loads a cycle, by LLVM's name or by instruction set.

An instruction on 8 numbers of float16 takes as long as one on 4 of float32, so that only a weight is cheaper: a vector of them
serves twice as many multiply-adds. A row says what a core has, and is asked for what its features allow (``elements_of``).
"""

DEFAULT_COSTS = {FLOAT32: CoreCost(), FLOAT16: CoreCost(broadcast=0.1)}
DOT_COSTS = {
    "sdot": CoreCost(0.5, broadcast=0.12),
    "vpdpbusd": CoreCost(0.5, zip=0.7),
    "vpmaddubsw": CoreCost(1.3, zip=0.7),
    "smull": CoreCost(2.0, broadcast=0.5, held=8),
    "vmull": CoreCost(2.5, broadcast=0.5, held=4),
}
"""Of int8 by its instruction, where a core has no row of its own; a multiply-add is four columns of a vector of tokens."""
AVX512_BYTES = 64


def core_costs(core: str, vector_bytes: int) -> dict[ElementType, CoreCost]:
    """Return the costs of a core by LLVM's name for it."""
    return CORE_COSTS.get(core) or CORE_COSTS.get("avx512" if vector_bytes == AVX512_BYTES else "") or DEFAULT_COSTS


def features_of(target: Mapping[str, Any]) -> frozenset[str]:
    """Return the features of a target by LLVM's names."""
    return frozenset(map(str, tvm.target.codegen.llvm_get_cpu_features(tvm.target.Target(dict(target)))))


def dot_of(target: Mapping[str, Any], vector_bytes: int) -> str:
    """Return what a target multiplies int8 by, a row of ``DOT_PRODUCTS``; nothing where it has no such kernel."""
    arch, features = str(target.get("mtriple", "")).split("-", 1)[0], features_of(target)
    if arch.startswith("aarch64"):
        return "sdot" if "dotprod" in features else "smull"
    if arch.startswith("arm"):
        return "vmull" if "neon" in features else ""
    wide = vector_bytes == AVX512_BYTES
    vnni = {"avx512vnni", "avx512vl"} <= features or (not wide and "avxvnni" in features)
    if vector_bytes * 2 < AVX512_BYTES or not ({"avx512bw", "avx512vl"} if wide else {"avx2"}) <= features:
        return ""
    return "vpdpbusd" if vnni else "vpmaddubsw"


def unit_of(target: Mapping[str, Any], vector_bytes: int) -> VectorUnit:
    """Return what the vectors of a target are converted by: 64-bit ARM has it all, 32-bit ARM of 2011 rounds no vector."""
    arch = str(target.get("mtriple", "")).split("-", 1)[0]
    if arch.startswith("aarch64"):
        return VectorUnit(saturates=True, in_place=True)
    if arch.startswith("arm"):
        return VectorUnit(rounds=False, in_place=True)
    features = features_of(target)
    avx512 = vector_bytes == AVX512_BYTES and {"avx512f", "avx512dq"} <= features
    return VectorUnit(rounds="sse4.1" in features, avx512=avx512)


def elements_of(target: Mapping[str, Any]) -> list[ElementType]:
    """Return the floats that kernels can multiply on a target: float16 where 64-bit ARM has arithmetic on it (ARMv8.2)."""
    wide = str(target.get("mtriple", "")).startswith("aarch64")
    return [FLOAT32, FLOAT16] if wide and "fullfp16" in features_of(target) else [FLOAT32]


def fuses_float16(target: Mapping[str, Any]) -> bool:
    """Return whether a multiply-add of float16 is rounded once on a target: else LLVM rounds product and sum."""
    return bool({"fullfp16", "avx512fp16"} & features_of(target))


@dataclass(frozen=True)
class CpuShape:
    """A core: bytes and number of its vector registers, L1 data and L2 cache in bytes, costs by element type.

    ``by_lane``: multiplies by a lane of a vector, as ARM's do, so that weights are loaded as whole vectors; others broadcast
    them from memory. ``dot``: what it multiplies int8 by. ``unit``: what its vectors are converted by.
    """

    vector_bytes: int
    registers: int
    l1d_bytes: int
    l2_bytes: int = 512 * 1024
    costs: tuple[tuple[ElementType, CoreCost], ...] = ((FLOAT32, CoreCost()),)
    by_lane: bool = False
    dot: str = ""
    unit: VectorUnit = field(default_factory=VectorUnit)

    @classmethod
    def of(cls, cluster: Cluster) -> "CpuShape":
        """Return the shape of a cluster's cores; caches that are not known are taken to be small."""
        vector_bytes = cluster.lanes * FLOAT32.bytes
        l1d, l2 = cluster.l1d_bytes or ASSUMED_L1D_BYTES, cluster.l2_bytes or ASSUMED_L2_BYTES
        target, known = cluster.target_dict(), core_costs(cluster.core, vector_bytes)
        costs = {element: known.get(element, known[FLOAT32]) for element in elements_of(target)}
        dot = dot_of(target, vector_bytes)
        if dot:
            costs[INT8] = known.get(INT8, DOT_COSTS[dot])
        arch = str(target.get("mtriple", "")).split("-", 1)[0]
        by_lane = arch.startswith(("aarch64", "arm"))
        unit = unit_of(target, vector_bytes)
        return cls(vector_bytes, cluster.registers, l1d, l2, tuple(costs.items()), by_lane, dot, unit)

    @property
    def elements(self) -> list[ElementType]:
        """What its kernels can multiply."""
        return [element for element, _ in self.costs]

    def lanes(self, element: ElementType) -> int:
        """Return the numbers of a vector."""
        return self.vector_bytes // element.bytes

    def cost(self, element: ElementType) -> CoreCost:
        """Return what an inner loop costs; KeyError where the core cannot multiply such numbers."""
        return dict(self.costs)[element]

    def with_cost(self, element: ElementType, cost: CoreCost) -> "CpuShape":
        """Return the core with other costs of an element type that it can multiply."""
        return replace(self, costs=tuple((e, cost if e is element else known) for e, known in self.costs))
