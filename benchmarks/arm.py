"""The ladder of whole models for ARM: rows of counted instructions, and of modelled cycles, for ``run.py arm``."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import arm_rival
from tvm import tirx

from rt3_tvm import device as devices
from rt3_tvm.bench.arm import WHOLE, KernelCount, Ladder, bench_arm
from rt3_tvm.bench.arm_code import Function, disassemble
from rt3_tvm.bench.arm_cycles import IN_ORDER, OUT_OF_ORDER, Block, cycle_model
from rt3_tvm.bench.arm_kinds import MULTIPLY_ADD
from rt3_tvm.bench.arm_report import HEADS, IN_LOOPS
from rt3_tvm.codegen.kernels import KernelTable
from rt3_tvm.device import Cluster
from rt3_tvm.schedules import LINEAR_FAMILIES, kernel, scheduled
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.layout import ELEMENT_TYPES, INT8, ElementType
from rt3_tvm.schedules.linear_plan import MatrixShape, TokenCount, plan_linear

CORES = {
    "A7": ("odroid-xu3", "LITTLE"),
    "A53": ("rk3399", "little"),
    "A55": ("rk3588", "little"),
    "A76": ("rk3588", "big0"),
    "X1": ("pixel6", "big"),
}
"""A device and a cluster for each core."""
LEAST_SHARE = 0.01
"""Families with a smaller part of an inference have no row of their own."""


CONVERSIONS = ("convert", "quantise", "quantise_static")
"""Families that bring activations into another element type."""
ATTENTIONS = ("attention", "attention_float16")
DENSE = 0
GROUPS = (DENSE, 4, 2, 1)
SIDE, KEPT, TOKENS = 768, 192, 128
"""Of the layer whose inner loop is shown: (SIDE, SIDE), of which a group keeps KEPT columns."""


def cluster_of(core: str) -> Cluster:
    """Return the cores of a name in CORES."""
    device, name = CORES[core]
    return next(cluster for cluster in devices.load(device).clusters if cluster.name == name)


def code_of(kernels: Iterable[tirx.PrimFunc], cluster: Cluster) -> dict[str, Function]:
    """Return the machine code of kernels for a core, by symbol."""
    table, target = KernelTable(), cluster.target_dict()
    for func in kernels:
        table.index(scheduled(func, CpuShape.of(cluster)))
    wide = str(target["mtriple"]).startswith("aarch64")
    with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
        path = Path(folder) / "kernels.o"
        table.compile(target, path)
        code = disassemble(path, "aarch64-linux-gnu" if wide else "arm-linux-gnueabihf")
    ours = {k.symbol for k in table.kernels}
    return {function.symbol: function for function in code if function.symbol in ours}


def loops(core: str, dtype: str) -> Iterator[dict[str, Any]]:
    """Yield what the innermost loop with most multiply-adds is made of, dense and by V, of int8 in quads too.

    With the multiply-adds of single numbers that a cycle is modelled to do, where the core has a model and an instruction a
    known number of them.
    """
    cluster, element = cluster_of(core), ELEMENT_TYPES[dtype]
    cpu = CpuShape.of(cluster)
    model = cycle_model(cluster.core) if cluster.core in (*OUT_OF_ORDER, *IN_ORDER) else None
    for matrix in _matrices(element):
        plan = plan_linear(cpu, matrix, TokenCount(1, TOKENS), element)
        pairs = plan.multiplied is INT8 and DOT_PRODUCTS[cpu.dot].pairs
        code = code_of([kernel(plan.family, plan, plan.parts[0], "none", cpu)], cluster)
        for symbol, function in code.items():
            loop = max(function.loops, key=lambda loop: [function.kinds[k] for k in loop].count(MULTIPLY_ADD))
            multiplies = [function.kinds[k] for k in loop].count(MULTIPLY_ADD)
            facts = {"core": core, "kernel": symbol, "instructions": len(loop), "mul-add": multiplies}
            facts |= {"a mul-add": len(loop) / multiplies, IN_LOOPS: function.stack_stores_in_loops}
            if model and not pairs:
                block = Block(symbol, tuple(function.instructions[k] for k in loop), 1)
                each = cpu.lanes(plan.multiplied)
                facts |= {"MAC a cycle": each * multiplies / model.cycles([block])[0], "modelled by": model.name}
            yield facts


def _matrices(element: ElementType) -> Iterator[MatrixShape]:
    """Yield the layers whose loops are shown."""
    for quads in (False, True) if element is INT8 else (False,):
        for group in GROUPS:
            if group:
                yield MatrixShape(SIDE, SIDE, KEPT, group, quads)
            elif not quads:
                yield MatrixShape.dense_of(SIDE, SIDE)


def rows(core: str, bundle: Path) -> Iterator[dict[str, Any]]:
    """Yield the families of each level and length, those with most instructions first, their sum, and rivals, in millions."""
    ladder = bench_arm(bundle)
    dense = {rung.length: arm_rival.instructions(core, bundle, rung.length) for rung in ladder.rungs if not rung.level}
    for rung in ladder.rungs:
        facts = {"core": core, "tokens": rung.length, "density": rung.density}
        shown = [k for k in rung.families if k.instructions >= LEAST_SHARE * rung.instructions]
        for counted in (*shown, rung.whole):
            yield facts | {"what": counted.symbol} | _figures(counted, ladder) | _shares(counted, dense[rung.length])
    for length, counts in dense.items():
        for rival, count in counts.items():
            yield {"core": core, "tokens": length, "rival": rival, "M": count / 1e6}


def by_dtype(core: str, dtype: str, bundle: Path, rivals: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Yield a row for each level of a bundle: millions of instructions in all, of what is not the linear layers, and rivals'."""
    ladder = bench_arm(bundle)
    for rung in ladder.rungs:
        of = {k.family: k.instructions / 1e6 for k in rung.families}
        conversions = sum(of.get(name, 0.0) for name in CONVERSIONS)
        linear = sum(m for family, m in of.items() if family in LINEAR_FAMILIES)
        facts = {"core": core, "tokens": rung.length, "dtype": dtype, "density": rung.density}
        yield (
            facts
            | {
                "M": rung.instructions / 1e6,
                "linear": linear,
                "conversions": conversions,
                "attention": sum(of.get(name, 0.0) for name in ATTENTIONS),
                "Mcycles": _millions(rung.cycles),
                "modelled by": ladder.model or "-",
            }
            | _shares(rung.whole, rivals)
        )


def _figures(counted: KernelCount, ladder: Ladder) -> dict[str, Any]:
    kinds = {head: _millions(counted.kinds.get(kind, 0)) for kind, head in HEADS.items()}
    cycles = {"Mcycles": _millions(counted.cycles), "modelled by": ladder.model or "-"}
    return {"M": _millions(counted.instructions)} | kinds | {IN_LOOPS: counted.stack_stores_in_loops} | cycles


def _shares(counted: KernelCount, rivals: Mapping[str, int]) -> dict[str, Any]:
    """Return a sum over those of the rivals; nothing of a part."""
    whole = counted.symbol == WHOLE
    return {f"over {rival}": counted.instructions / count if whole else "" for rival, count in rivals.items()}


def _millions(value: float | None) -> float | str:
    return value / 1e6 if value else ""
