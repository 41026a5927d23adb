"""Checksums of what a bundle holds: CRC-32 of each section, in a table that the bundle carries in a section of its own.

They tell a file that was damaged, not one that was forged. ``seal`` writes the table once the bundle is linked;
``check_content`` reads the file against it, and ``rt3_check`` of the C API what was loaded. Symbols, comments and section
headers are left out, so that a bundle may be stripped.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from elftools.elf.elffile import ELFFile

from rt3_tvm.errors import Rt3Error

SECTION = ".rt3.checksums"
MOST_ROWS = 64
_HEAD = struct.Struct("<IIQ")
"""CRC-32 of the rest, count of rows, address of the table: rt3_checksum_table of ``rt3_internal.h``."""
_ROW = struct.Struct("<24sQQQII")
TABLE_BYTES = _HEAD.size + MOST_ROWS * _ROW.size
_CHUNK = 1 << 20
_WRITABLE, _ALLOCATED = 1, 2  # ELF's SHF_WRITE and SHF_ALLOC

_AROUND_SECTION_HEADERS = {32: (0x20, 0x24), 64: (0x28, 0x30)}
"""Where e_shoff begins and ends, by the class of the file."""


@dataclass(frozen=True)
class Part:
    """A range of the file: where it is loaded to, and whether it is the same there as in the file."""

    name: str
    address: int
    offset: int
    size: int
    same_in_memory: bool


def seal(path: Path) -> None:
    """Write the checksums of a linked bundle into it."""
    with path.open("r+b") as file:
        elf = ELFFile(file)
        own = elf.get_section_by_name(SECTION)
        assert own is not None, f"a bundle is linked with a section {SECTION}"
        parts = list(_parts(elf))
        assert len(parts) <= MOST_ROWS, f"{len(parts)} sections, room for {MOST_ROWS}"
        rows = b"".join(
            _ROW.pack(p.name.encode()[:23], p.address, p.offset, p.size, _crc(file, p.offset, p.size), p.same_in_memory)
            for p in parts
        )
        head = _HEAD.pack(0, len(parts), own["sh_addr"])[4:]
        file.seek(own["sh_offset"])
        file.write(struct.pack("<I", zlib.crc32(head + rows)) + head + rows)


def _parts(elf: ELFFile) -> Iterator[Part]:
    """Yield what the loader or the program looks at. Of the ELF header all but what names the section headers."""
    programs = elf["e_phnum"] * elf["e_phentsize"]
    before, after = _AROUND_SECTION_HEADERS[elf.elfclass]
    yield Part("ELF header", 0, 0, before, False)
    yield Part("ELF header, end", 0, after, 10, False)  # e_flags to e_phnum
    yield Part("program headers", 0, elf["e_phoff"], programs, False)
    for section in elf.iter_sections():
        flags, size = section["sh_flags"], section["sh_size"]
        if flags & _ALLOCATED and section["sh_type"] != "SHT_NOBITS" and size and section.name != SECTION:
            # The loader writes addresses into the others.
            yield Part(section.name, section["sh_addr"], section["sh_offset"], size, not flags & _WRITABLE)


def _crc(file: BinaryIO, offset: int, size: int) -> int:
    """Return the CRC-32 of a range of a file, or of what is there of it."""
    file.seek(offset)
    crc = 0
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        crc = zlib.crc32(chunk, crc)
        size -= len(chunk)
    return crc


def _rows(file: BinaryIO, path: Path) -> list[tuple[Part, int]]:
    """Return the parts of a sealed bundle with their checksums."""
    section = ELFFile(file).get_section_by_name(SECTION)
    if section is None or section["sh_size"] != TABLE_BYTES:
        raise Rt3Error(f"'{path}' has no section {SECTION}: was it made by another rt3?")
    file.seek(section["sh_offset"])
    data = file.read(TABLE_BYTES).ljust(TABLE_BYTES, b"\0")
    crc, count, _ = _HEAD.unpack_from(data)
    end = _HEAD.size + count * _ROW.size
    if not 0 < count <= MOST_ROWS or zlib.crc32(data[4:end]) != crc:
        raise Rt3Error(f"'{path}' is damaged: the checksum of its section {SECTION} differs")
    rows = []
    for name, address, offset, size, checksum, same in _ROW.iter_unpack(data[_HEAD.size : end]):
        rows.append((Part(name.rstrip(b"\0").decode(), address, offset, size, bool(same)), checksum))
    return rows


def check_content(file: BinaryIO, path: Path) -> tuple[Part, ...]:
    """Compare all parts of a bundle with their checksums, some 1 ms a MB, and return them.

    Raises
    ------
    Rt3Error
        A part differs, or there are no checksums.
    """
    rows = _rows(file, path)
    for part, checksum in rows:
        if _crc(file, part.offset, part.size) != checksum:
            raise Rt3Error(f"'{path}' is damaged: the checksum of its section {part.name} differs")
    return tuple(part for part, _ in rows)


def read_checked(file: BinaryIO, path: Path, name: str) -> bytes:
    """Return the content of one section, compared with its checksum."""
    for part, checksum in _rows(file, path):
        if part.name == name:
            file.seek(part.offset)
            data = file.read(part.size)
            if zlib.crc32(data) != checksum:
                raise Rt3Error(f"'{path}' is damaged: the checksum of its section {name} differs")
            return data
    raise Rt3Error(f"'{path}' has no section {name}: was it made by another rt3?")
