"""Cycles of counted code, modelled: llvm-mca for cores that reorder, a rule for those that do not; none was measured on a chip.

Both take a block as if it came right after itself and found all of its data in the first cache. LLVM's own models of Cortex-A53
and A55 are not used: they contradict what is published of these cores.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from rt3_tvm.bench.arm_kinds import BRANCH, MOVE, MULTIPLY_ADD, VECTOR, Instruction
from rt3_tvm.errors import JobError

LEAST_MCA = 19
NEWEST_MCA = 40
SHORT, LONG = 20, 60
"""Iterations of two runs, whose difference leaves out filling and draining the pipeline."""

OUT_OF_ORDER = {
    "cortex-a76": "neoverse-n2",
    "cortex-a77": "neoverse-n2",
    "cortex-a78": "neoverse-n2",
    "cortex-x1": "neoverse-v1",
}
"""LLVM's model by core: the nearest of the same widths. Its model of Neoverse N1 decodes 3 a cycle, Cortex-A76 4."""


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other, equally often."""

    symbol: str
    instructions: tuple[Instruction, ...]
    count: int

    @property
    def executed(self) -> int:
        """Instructions times how often they run."""
        return self.count * len(self.instructions)


@dataclass(frozen=True)
class InOrder:
    """Cycles of loads on a core that issues two instructions a cycle, in order, by the bits that one brings.

    From ncnn's notes on dual issue of Cortex-A53 and A55: a vector operation of 128 bits takes the vector pipes for a cycle, a
    load of 128 bits issues alone for two, one of 64 bits or less for one on A53 and beside a multiply-add on A55; integers pair
    with everything.
    """

    narrow_load: float

    def cycles(self, instructions: Sequence[Instruction]) -> float:
        """Return the least cycles of a block."""
        costs = [self._cost(one) for one in instructions]
        alone, free = sum(costs), sum(cost == 0 for cost in costs)
        return max(alone, len(costs) / 2, alone + max(0.0, (free - alone) / 2))

    def _cost(self, one: Instruction) -> float:
        registers = _vector_registers(one)
        if not registers:
            return 0.0
        wide = sum(name[0] in "qv" for name in registers)
        if one.is_load:
            return self.narrow_load if wide < len(registers) or one.stem.endswith("1r") else 2.0 * wide
        if one.is_store:
            return float(wide)
        if one.kind not in (MULTIPLY_ADD, VECTOR, MOVE):
            return 0.0
        slow = DIVISION_CYCLES if one.stem in ("fdiv", "fsqrt") else 1.0
        return slow * (1.0 if wide else 0.5)


DIVISION_CYCLES = 10.0
IN_ORDER = {"cortex-a53": InOrder(1.0), "cortex-a55": InOrder(0.0)}


def _vector_registers(one: Instruction) -> list[str]:
    """Return the vector registers that a load or store moves, else the one that is written."""
    moved = one.operands.partition("[")[0] if one.is_load or one.is_store else one.operands.split(",", 1)[0]
    return re.findall(r"\b[qdshv]\d{1,2}\b", moved)


@dataclass(frozen=True)
class CycleModel:
    """A model of a core: what it is called, and the cycles of one pass through each of some blocks."""

    name: str
    cycles: Callable[[Sequence[Block]], list[float]]


def cycle_model(core: str) -> CycleModel:
    """Return the model of a core.

    Raises
    ------
    JobError
        There is none, or llvm-mca is missing or too old for it.
    """
    if core in IN_ORDER:
        rule = IN_ORDER[core]
        return CycleModel(f"rule of dual issue, {core}", lambda blocks: [rule.cycles(b.instructions) for b in blocks])
    if core not in OUT_OF_ORDER:
        raise JobError(f"no cycles: {core} has no model that we trust")
    program, version = _find_mca()
    cpu = OUT_OF_ORDER[core]
    return CycleModel(f"llvm-mca {version}, {cpu}", lambda blocks: mca_cycles(program, cpu, blocks))


@cache
def _find_mca() -> tuple[str, str]:
    """Return the newest llvm-mca and its version."""
    too_old = ""
    for name in (*(f"llvm-mca-{n}" for n in range(NEWEST_MCA, LEAST_MCA - 1, -1)), "llvm-mca"):
        if shutil.which(name) is None:
            continue
        said = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"LLVM version (\d+)[\d.]*", said)
        if version and int(version[1]) >= LEAST_MCA:
            return name, version[0].removeprefix("LLVM version ")
        too_old = f", this {name} is {version[1] if version else 'of no version'}"
    raise JobError(f"no cycles: llvm-mca {LEAST_MCA} or newer is not installed{too_old}: install llvm-{LEAST_MCA}")


def mca_cycles(program: str, cpu: str, blocks: Sequence[Block]) -> list[float]:
    """Return the cycles of one pass through each block, every different text simulated once."""
    texts = [assembly(block) for block in blocks]
    different = list(dict.fromkeys(texts))
    short, long = (_simulate(program, cpu, different, n) for n in (SHORT, LONG))
    each = {t: (b - a) / (LONG - SHORT) for t, a, b in zip(different, short, long, strict=True)}
    return [each[text] for text in texts]


def _simulate(program: str, cpu: str, texts: Sequence[str], iterations: int) -> list[int]:
    regions = "".join(f"# LLVM-MCA-BEGIN {i}\n{text}\n# LLVM-MCA-END {i}\n" for i, text in enumerate(texts))
    command = [program, "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", "-mattr=+dotprod,+fullfp16", "-json"]
    options = [f"-iterations={iterations}", "-skip-unsupported-instructions=any"]
    done = subprocess.run([*command, *options], input=regions, capture_output=True, text=True, check=False)
    try:
        found: dict[str, Mapping[str, int]] = {
            r["Name"]: r["SummaryView"] for r in json.loads(done.stdout)["CodeRegions"]
        }
        return [found[str(i)]["TotalCycles"] for i in range(len(texts))]
    except (ValueError, KeyError) as error:
        raise JobError(f"{program} failed with {done.returncode}: {' '.join(done.stderr.split())[:200]}") from error


def assembly(block: Block) -> str:
    """Return a block as text for an assembler: where a branch or an address of a page leads makes no difference."""
    lines = []
    for one in block.instructions:
        text = re.sub(r"\s*<[^>]*>", "", one.text)
        if one.kind == BRANCH or one.stem in ("adr", "adrp"):
            text = re.sub(r"([ ,])(0x)?[0-9a-f]{3,}$", r"\1.", text)
        lines.append(text)
    return "\n".join(lines)
