"""The ladder of a bundle for ARM: counted instructions of an inference by kernel and by kind, modelled cycles beside them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rt3_tvm.bench.arm_code import Function, disassemble
from rt3_tvm.bench.arm_cycles import Block, CycleModel, cycle_model
from rt3_tvm.bench.arm_kinds import BRANCH, KINDS
from rt3_tvm.bench.arm_qemu import Executed, InstructionCounter, counting
from rt3_tvm.codegen.emulate import EMULATORS
from rt3_tvm.codegen.link import CROSS
from rt3_tvm.errors import JobError, Rt3Error, choices
from rt3_tvm.runtime.check import read_metadata

RUNTIME = "runtime"
"""Family of what the bundle runs beside its kernels."""
WHOLE = "all"
"""What all kernels of an inference are called as one."""
OUTSIDE = "outside"
"""Family of what runs outside of the bundle: libc and the program that calls it."""


@dataclass(frozen=True)
class KernelCount:
    """One kernel of one inference: counted instructions by kind, and modelled cycles (None: no model)."""

    symbol: str
    family: str
    kinds: Mapping[str, int]
    stack_stores_in_loops: int
    cycles: float | None = None

    @property
    def instructions(self) -> int:
        """All of them."""
        return sum(self.kinds.values())


@dataclass(frozen=True)
class Rung:
    """One level at one length: its kernels, those with most instructions first."""

    level: int
    density: float
    length: int
    kernels: tuple[KernelCount, ...]

    @property
    def instructions(self) -> int:
        """Instructions of one inference."""
        return sum(k.instructions for k in self.kernels)

    @property
    def cycles(self) -> float | None:
        """Modelled cycles of one inference."""
        each = [k.cycles for k in self.kernels if k.cycles is not None]
        return sum(each) if each else None

    @cached_property
    def families(self) -> tuple[KernelCount, ...]:
        """The kernels of each family as one."""
        names = dict.fromkeys(k.family for k in self.kernels)
        merged = [_merge([k for k in self.kernels if k.family == name], name) for name in names]
        return tuple(sorted(merged, key=lambda k: -k.instructions))

    @property
    def whole(self) -> KernelCount:
        """All kernels as one."""
        return _merge(self.kernels, WHOLE)


def _merge(kernels: Sequence[KernelCount], name: str) -> KernelCount:
    kinds: Counter[str] = Counter()
    for kernel in kernels:
        kinds.update(kernel.kinds)
    each = [k.cycles for k in kernels if k.cycles is not None]
    return KernelCount(name, name, kinds, sum(k.stack_stores_in_loops for k in kernels), sum(each) if each else None)


@dataclass(frozen=True)
class Ladder:
    """What was counted, and by what its cycles are modelled; ``no_cycles`` says why they are not."""

    core: str
    command: str
    tvm_version: str
    rungs: tuple[Rung, ...]
    model: str = ""
    no_cycles: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        facts = {name: getattr(self, name) for name in ("core", "command", "tvm_version", "model", "no_cycles")}
        return facts | {"rungs": [_rung_json(rung) for rung in self.rungs]}


def _rung_json(rung: Rung) -> dict[str, Any]:
    kernels = [
        {
            "symbol": k.symbol,
            "family": k.family,
            "instructions": k.instructions,
            "kinds": {kind: k.kinds[kind] for kind in KINDS if kind in k.kinds},
            "stack_stores_in_loops": k.stack_stores_in_loops,
            "modelled_cycles": k.cycles,
        }
        for k in rung.kernels
    ]
    facts = {"level": rung.level, "density": rung.density, "length": rung.length, "instructions": rung.instructions}
    return facts | {"modelled_cycles": rung.cycles, "kernels": kernels}


def bench_arm(
    bundle: Path,
    levels: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    model_cycles: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Ladder:
    """Count what one inference of each level at each length executes, one thread, batch 1, under qemu-user.

    Parameters
    ----------
    levels, lengths
        Default all levels, and all compiled lengths.

    Raises
    ------
    Rt3Error
        The bundle is not for ARM, or has no such level or length.
    JobError
        qemu-user, a compiler or a disassembler for the target is missing.
    """
    facts = read_metadata(bundle)
    arch = str(facts["target"].get("mtriple", "")).split("-", 1)[0]
    if arch not in EMULATORS:
        raise Rt3Error(f"'{bundle}' is for {arch or 'this machine'}: what is counted is for {choices(EMULATORS)}")
    levels = _chosen("levels", levels, range(len(facts["levels"])))
    lengths = _chosen("lengths", lengths, range(1, max(facts["lengths"]) + 1), facts["lengths"])
    functions = disassemble(bundle, CROSS[arch][0])
    if missing := {row["symbol"] for row in facts["kernels"]} - {f.symbol for f in functions}:
        raise Rt3Error(f"'{bundle}' was stripped of the names of its kernels, {min(missing)} for one: compile it again")
    core = str(facts["target"].get("mcpu", arch))
    model, why = _model(core, arch) if model_cycles else (None, "")
    addresses = tuple(one.address for f in functions for one in f.instructions)
    rungs = []
    with counting(bundle, facts["target"], addresses) as counter:
        for length in lengths:
            inputs = _inputs(facts, length)
            for level in levels:
                progress(f"count level {level} at {length} tokens under {counter.emulator.command[0]}")
                executed = counter.count(level, inputs)
                kernels = tuple(_kernels(functions, executed, facts, model))
                rungs.append(Rung(level, facts["levels"][level]["density"], length, kernels))
        return Ladder(core, _command(counter), facts["tvm_version"], tuple(rungs), model.name if model else "", why)


def _command(counter: InstructionCounter) -> str:
    return " ".join(counter.emulator.command)


def _chosen(
    name: str, given: Sequence[int] | None, known: range, default: Sequence[int] | None = None
) -> Sequence[int]:
    for value in given or ():
        if value not in known:
            raise Rt3Error(f"`{name}` {value}: this bundle has {known.start} to {known.stop - 1}")
    return given or default or known


def _model(core: str, arch: str) -> tuple[CycleModel | None, str]:
    try:
        if arch != "aarch64":
            raise JobError(f"no cycles: {core} has no model that we trust")
        return cycle_model(core), ""
    except JobError as error:
        return None, str(error)


def _inputs(facts: Mapping[str, Any], length: int) -> Mapping[str, Any]:
    from rt3_tvm import model as models

    return models.random_inputs(models.inputs_of(models.build(facts["model"])), 1, length)


def _kernels(
    functions: Sequence[Function], executed: Executed, facts: Mapping[str, Any], model: CycleModel | None
) -> Iterator[KernelCount]:
    """Yield the kernels that ran, those with most instructions first, then what else did."""
    families = {row["symbol"]: row["family"] for row in facts["kernels"]}
    ran = [f for f in functions if any(one.address in executed.counts for one in f.instructions)]
    cycles = _cycles([b for f in ran for b in blocks_of(f, executed.counts)], model) if model else {}
    rows: list[KernelCount] = []
    for function in ran:
        kinds: Counter[str] = Counter()
        for one, kind in zip(function.instructions, function.kinds, strict=True):
            kinds[kind] += executed.counts.get(one.address, 0)
        own = function.symbol in families
        stores = function.stack_stores_in_loops if own else 0
        family = families.get(function.symbol, RUNTIME)
        rows.append(KernelCount(function.symbol, family, kinds, stores, cycles.get(function.symbol)))
    kernels = sorted((r for r in rows if r.family != RUNTIME), key=lambda k: -k.instructions)
    yield from kernels
    yield _merge([r for r in rows if r.family == RUNTIME], RUNTIME)
    yield KernelCount(OUTSIDE, OUTSIDE, {KINDS[-1]: executed.outside}, 0)


def blocks_of(function: Function, counts: Mapping[int, int]) -> Iterator[Block]:
    """Yield the runs of instructions of a function that executed equally often, each up to a branch."""
    block: list[Any] = []
    times = 0
    for one in function.instructions:
        now = counts.get(one.address, 0)
        if block and (now != times or block[-1].kind == BRANCH):
            yield Block(function.symbol, tuple(block), times)
            block = []
        times = now
        if now:
            block.append(one)
    if block:
        yield Block(function.symbol, tuple(block), times)


def _cycles(blocks: Sequence[Block], model: CycleModel) -> dict[str, float]:
    """Return the modelled cycles of each symbol."""
    sums: defaultdict[str, float] = defaultdict(float)
    for block, cycles in zip(blocks, model.cycles(blocks), strict=True):
        sums[block.symbol] += cycles * block.count
    return dict(sums)
