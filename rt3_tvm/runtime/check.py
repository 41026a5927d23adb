"""Looks into a shared library before it is loaded: whole, undamaged, for this machine, and a bundle."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from rt3_tvm import schema
from rt3_tvm.errors import Rt3Error
from rt3_tvm.files import open_regular
from rt3_tvm.runtime.checksums import Part, check_content, read_checked

MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64", "EM_ARM": "armv7l"}
MARKER = "rt3_open"
BUNDLE_FORMAT = 3
"""``RT3_API_VERSION`` of rt3.h: of the C API, the tables and the metadata; a bundle of another one is not opened."""
METADATA_SECTION = ".rt3.metadata"
WEIGHTS_SECTION = ".rt3.weights"
SHARED = -1
"""Level of the weights that levels share, in the tables of a bundle and in its metadata."""

_NAMES = schema.list_of(schema.text)
_STEP = schema.row_of(schema.integer(0), schema.text, schema.integer(0), schema.integer(0))
_METADATA = schema.record(
    model=schema.record(**{"class": schema.text}),
    device=schema.text,
    cluster=schema.text,
    target=schema.table,
    cpu_features=_NAMES,
    compiler=_NAMES,
    rt3_version=schema.text,
    tvm_version=schema.text,
    batch=schema.integer(1),
    threads=schema.integer(1),
    lengths=schema.list_of(schema.integer(1), at_least=1),
    inputs=schema.list_of(schema.text, at_least=1),
    outputs=schema.list_of(schema.text, at_least=1),
    weights_bytes=schema.integer(0),
    weight_sections=schema.list_of(
        schema.record(level=schema.integer(SHARED), offset=schema.integer(0), bytes=schema.integer(0)), at_least=1
    ),
    workspace_bytes=schema.integer(0),
    kernels=schema.list_of(schema.record(symbol=schema.text, family=schema.text)),
    levels=schema.list_of(
        schema.record(
            frequency_hz=schema.number(0),
            deadline_s=schema.number(0),
            density=schema.number(0, 1),
            sparsity=schema.number(0, 1),
        ),
        at_least=1,
    ),
    variants=schema.list_of(
        schema.record(level=schema.integer(0), length=schema.integer(1), steps=schema.list_of(_STEP)), at_least=1
    ),
    matrices=schema.table_of(
        schema.record(
            shape=schema.row_of(schema.integer(1), schema.integer(1)),
            levels=schema.list_of(
                schema.record(kernel=schema.text, density=schema.number(0, 1), group=schema.integer(0))
            ),
        )
    ),
    unmatched=_NAMES,
)


class WrongMachine(Rt3Error):
    """A bundle that is for another machine, or for a CPU that has more than this one."""


@contextmanager
def open_bundle(path: Path, for_this_machine: bool = True) -> Iterator[BinaryIO]:
    """Open a file that is a whole bundle; loading anything else could crash the process.

    Raises
    ------
    Rt3Error
        It is none, or for another machine.
    """
    try:
        opened = open_regular(path)
    except FileNotFoundError as error:
        raise Rt3Error(f"no such bundle: '{path}'") from error
    except OSError as error:
        raise Rt3Error(f"'{path}' cannot be read: {error.strerror or error}") from error
    with opened as file:
        _check_library(file, path, for_this_machine)
        yield file


def _check_library(file: BinaryIO, path: Path, for_this_machine: bool) -> None:
    try:
        elf = ELFFile(file)
        file.seek(0, 2)
        size = file.tell()
        ends = [s["p_offset"] + s["p_filesz"] for s in elf.iter_segments()]
        end = max([elf["e_shoff"] + elf["e_shnum"] * elf["e_shentsize"], *ends])
        symbols = elf.get_section_by_name(".dynsym") if end <= size else None
        is_bundle = isinstance(symbols, SymbolTableSection) and bool(symbols.get_symbol_by_name(MARKER))
        is_bundle = is_bundle and isinstance(elf.get_section_by_name(".dynamic"), DynamicSection)
        machine = MACHINES.get(elf["e_machine"], str(elf["e_machine"]))
    except Exception as error:  # what pyelftools raises on a damaged file is anything
        raise Rt3Error(f"'{path}' is not an rt3 bundle: no readable ELF library") from error
    if end > size:
        raise Rt3Error(f"'{path}' is truncated: {size} of {end} bytes")
    if not is_bundle:
        raise Rt3Error(f"'{path}' is not an rt3 bundle: it has no symbol {MARKER}: make one with rt3 compile")
    if for_this_machine and machine != platform.machine():
        raise WrongMachine(
            f"'{path}' is for {machine}, this machine is {platform.machine()}: compile it for the device 'host'"
        )


def check_bundle(path: Path, for_this_machine: bool = True) -> tuple[Part, ...]:
    """Check a file from its ELF header to the last weight, without loading it; return the parts that were compared.

    Raises
    ------
    Rt3Error
        It is no bundle, damaged, of another format, or for another machine.
    """
    with open_bundle(path, for_this_machine) as file:
        metadata_of(file, path)
        return check_content(file, path)


def read_metadata(path: Path, for_this_machine: bool = False) -> dict[str, Any]:
    """Return what a bundle says of itself without loading it, so for any machine unless told otherwise."""
    with open_bundle(path, for_this_machine) as file:
        return metadata_of(file, path)


def metadata_of(file: BinaryIO, path: Path) -> dict[str, Any]:
    """Return the metadata of an open bundle, checked.

    Raises
    ------
    Rt3Error
        They are missing, damaged, or of another format.
    """
    try:
        facts: dict[str, Any] = schema.parse(read_checked(file, path, METADATA_SECTION).rstrip(b"\0"))
        schema.table(facts, "the whole")
        if facts.get("format") == BUNDLE_FORMAT:
            _METADATA(facts, "metadata")
            _check_levels(facts)
            _check_sections(facts)
    except (ELFError, OSError, ValueError) as error:
        raise Rt3Error(f"'{path}' is damaged: its metadata: {error}") from error
    if facts.get("format") != BUNDLE_FORMAT:
        raise Rt3Error(
            f"'{path}' has bundle format {facts.get('format')}, this rt3 reads {BUNDLE_FORMAT}: compile it again"
        )
    return facts


def _check_levels(facts: dict[str, Any]) -> None:
    """Raise ValueError unless the frequencies descend and the variants are of levels, lengths and kernels that are there."""
    hz = [level["frequency_hz"] for level in facts["levels"]]
    if any(a <= b for a, b in pairwise(hz)) or hz[-1] <= 0:
        raise ValueError(f"frequencies {hz} Hz do not descend")
    for i, variant in enumerate(facts["variants"]):
        if variant["level"] >= len(hz) or variant["length"] not in facts["lengths"]:
            raise ValueError(f"variants[{i}] is of level {variant['level']} and length {variant['length']}")
        if any(kernel >= len(facts["kernels"]) for kernel, *_ in variant["steps"]):
            raise ValueError(f"variants[{i}] calls a kernel that is not listed")


def _check_sections(facts: dict[str, Any]) -> None:
    """Raise ValueError unless the sections of the weights follow each other: what levels share, then level by level."""
    end = 0
    for level, row in enumerate(facts["weight_sections"], SHARED):
        if row["level"] != level or level >= len(facts["levels"]) or row["offset"] < end:
            raise ValueError(f"weight_sections[{level - SHARED}] is of level {row['level']} at {row['offset']}")
        end = row["offset"] + row["bytes"]
    if end != facts["weights_bytes"]:
        raise ValueError(f"weight_sections end at {end}, weights_bytes is {facts['weights_bytes']}")
