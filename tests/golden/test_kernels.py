"""The scheduled TIR of one small kernel of each family, as text: `pytest tests/golden --update-golden` writes it anew.

FAMILY.txt is the text for Cortex-A76; a core whose text is another one has FAMILY.CORE.txt.
"""

import hashlib
import textwrap
from difflib import unified_diff
from itertools import islice
from pathlib import Path

import pytest

from rt3_tvm import device
from rt3_tvm.schedules import SCHEDULES, kernel, scheduled
from rt3_tvm.schedules.cpu import DEFAULT_COSTS, DOT_COSTS, CoreCost, CpuShape
from rt3_tvm.schedules.examples import Sizes
from rt3_tvm.schedules.layout import INT8, ElementType
from rt3_tvm.schedules.tuned import LINEAR_REVISION, LINEAR_TEXTS
from rt3_tvm.schedules.vector_math import VectorUnit

FOLDER = Path(__file__).parent / "kernels"
BASE = "cortex-a76"


def costs_of(dot: str) -> tuple[tuple[ElementType, CoreCost], ...]:
    """Return the costs of an x86 core with a dot product of int8, by element type."""
    return tuple({**DEFAULT_COSTS, INT8: DOT_COSTS[dot]}.items())


CORES = {
    BASE: CpuShape.of(device.load("raspberrypi5").cluster),
    "cortex-a7": CpuShape.of(device.load("odroid-xu4").with_cluster("LITTLE").cluster),
    "avx2": CpuShape(32, 16, 32 * 1024, costs=costs_of("vpmaddubsw"), dot="vpmaddubsw"),
    "avx512": CpuShape(64, 32, 48 * 1024, costs=costs_of("vpdpbusd"), dot="vpdpbusd", unit=VectorUnit(avx512=True)),
}
SIZES = Sizes(batch=2, length=20, heads=2, dim=8, rows=16)
TUNED_FAMILIES = ("dense_linear", "few_token_linear", "pattern_linear")
LONGEST_DIFF, WIDTH = 60, 110


def text_of(family: str, core: str) -> str:
    """Return the text of the scheduled example of a family."""
    example = SCHEDULES[family].example(CORES[core], SIZES)
    return scheduled(kernel(family, *example.arguments), CORES[core]).script(show_meta=False) + "\n"


def path_of(family: str, core: str) -> Path:
    return FOLDER / (f"{family}.txt" if core == BASE else f"{family}.{core}.txt")


def update(family: str, core: str, text: str) -> None:
    """Write the text of a kernel, unless it is that of the base."""
    path = path_of(family, core)
    path.parent.mkdir(exist_ok=True)
    if core == BASE or text != text_of(family, BASE):
        path.write_text(text, encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def wrapped(text: str) -> list[str]:
    """Return the lines of a text, long ones cut, so that a difference in one of them can be seen."""
    return [part for line in text.splitlines() for part in textwrap.wrap(line, WIDTH, break_long_words=False)]


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("family", SCHEDULES)
def test_kernel_has_its_golden_text(family, core, update_golden):
    text = text_of(family, core)
    if update_golden:
        update(family, core, text)
    own, base = path_of(family, core), path_of(family, BASE)
    path = own if own.exists() else base
    if not path.exists():
        pytest.fail(f"no golden text of {family}: pytest tests/golden --update-golden", pytrace=False)
    golden = path.read_text(encoding="utf-8")
    if text != golden:
        diff = unified_diff(wrapped(golden), wrapped(text), path.name, f"{family} for {core}", n=2, lineterm="")
        hint = f"{family} for {core} is not as in {path.name}; where that is meant: pytest tests/golden --update-golden"
        pytest.fail("\n".join([hint, *islice(diff, LONGEST_DIFF)]), pytrace=False)


def test_kernels_that_change_raise_the_revision():
    """What was measured of a plan holds for the kernels that it gave: a log of others is ignored by their revision."""
    digest = hashlib.sha256()
    for path in sorted(path_of(family, core) for family in TUNED_FAMILIES for core in CORES):
        if path.exists():
            digest.update(path.name.encode() + path.read_bytes())
    if digest.hexdigest()[:16] != LINEAR_TEXTS:
        change = f'LINEAR_REVISION = {LINEAR_REVISION + 1} and LINEAR_TEXTS = "{digest.hexdigest()[:16]}"'
        pytest.fail(
            f"linear kernels are not those of revision {LINEAR_REVISION}: schedules/tuned.py: {change}", pytrace=False
        )


def test_every_golden_text_is_of_a_kernel():
    known = {path_of(family, core).name for family in SCHEDULES for core in CORES}
    assert {path.name for path in FOLDER.iterdir()} <= known
