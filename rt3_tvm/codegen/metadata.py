"""The JSON that a bundle carries, with room for what is only known once the bundle has been run."""

import json
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from rt3_tvm.runtime.check import METADATA_SECTION
from rt3_tvm.runtime.checksums import seal


def encode_metadata(metadata: dict[str, Any], room: int = 0) -> bytes:
    """Return the metadata as it lies in a bundle, with ``room`` bytes to grow by; zeros end it for C and for Python."""
    return json.dumps(metadata).encode() + bytes(room)


def replace_metadata(bundle: Path, metadata: dict[str, Any]) -> None:
    """Write other metadata into a linked bundle, where it stands: nothing else of the file moves."""
    text = encode_metadata(metadata)
    with bundle.open("r+b") as file:
        section = ELFFile(file).get_section_by_name(METADATA_SECTION)
        assert section is not None, f"a bundle is linked with a section {METADATA_SECTION}"
        size, offset = section.data_size, section["sh_offset"]
        assert len(text) < size, f"metadata of {len(text)} bytes, room for {size - 1}"
        file.seek(offset)
        file.write(text.ljust(size, b"\0"))
    seal(bundle)
