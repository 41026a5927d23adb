"""Looks into a shared library before it is loaded: whole, for this machine, and a bundle."""

import json
import platform
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from rt3_tvm.errors import Rt3Error

MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64", "EM_ARM": "armv7l"}
MARKER = "rt3_open"
BUNDLE_FORMAT = 2
"""Version of the C API and of the metadata; a bundle of another one is not opened."""
METADATA_SECTION = ".rt3.metadata"


def check_bundle(path: Path, for_this_machine: bool = True) -> None:
    """Raise Rt3Error unless a file is a whole bundle; loading anything else could crash the process."""
    if not path.is_file():
        raise Rt3Error(f"no such bundle: '{path}'")
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            size = path.stat().st_size
            ends = [s["p_offset"] + s["p_filesz"] for s in elf.iter_segments()]
            table_end = elf["e_shoff"] + elf["e_shnum"] * elf["e_shentsize"]
            if max([table_end, *ends]) > size:
                raise Rt3Error(f"'{path}' is truncated: {size} of {max([table_end, *ends])} bytes")
            symbols = elf.get_section_by_name(".dynsym")
            is_bundle = isinstance(symbols, SymbolTableSection) and bool(symbols.get_symbol_by_name(MARKER))
            if not is_bundle or not isinstance(elf.get_section_by_name(".dynamic"), DynamicSection):
                raise Rt3Error(f"'{path}' is not an rt3 bundle: it has no symbol {MARKER}: make one with rt3 compile")
            machine = MACHINES.get(elf["e_machine"], str(elf["e_machine"]))
    except (ELFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Rt3Error(f"'{path}' is not an rt3 bundle: no readable ELF library") from error
    if for_this_machine and machine != platform.machine():
        raise Rt3Error(
            f"'{path}' is for {machine}, this machine is {platform.machine()}: compile it for the device 'host'"
        )


def read_metadata(path: Path, for_this_machine: bool = False) -> dict[str, Any]:
    """Check a bundle and return what it says of itself without loading it, so for any machine unless told otherwise."""
    check_bundle(path, for_this_machine)
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(METADATA_SECTION)
        if section is None:
            raise Rt3Error(f"'{path}' has no section {METADATA_SECTION}: was it made by another rt3?")
        facts: dict[str, Any] = json.loads(section.data().rstrip(b"\0"))
    if facts.get("format") != BUNDLE_FORMAT:
        raise Rt3Error(
            f"'{path}' has bundle format {facts.get('format')}, this rt3 reads {BUNDLE_FORMAT}: compile it again"
        )
    return facts
