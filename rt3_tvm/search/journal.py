"""The journal of a search: one JSON object a line, appended to, so that a search killed at any moment goes on.

The first line is the configuration; another one is refused. A last line that was cut off is dropped. Only a restart writes it
anew.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.files import write_text
from rt3_tvm.search.options import PHASES, matters_from

VERSION = 1
Record = dict[str, Any]


@dataclass
class Journal:
    """A journal on disk; ``records`` are those after the configuration, ``add`` appends one."""

    path: Path
    config: dict[str, Any]
    records: list[Record] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, config: dict[str, Any]) -> "Journal":
        """Begin a journal, or go on with the one that is there.

        Raises
        ------
        Rt3Error
            It is of another configuration: it says what differs; or a line is damaged: it names the line.
        """
        wanted = _first_line(config)
        if not path.is_file() or not path.stat().st_size:
            path.parent.mkdir(parents=True, exist_ok=True)
            journal = cls(path, wanted)
            journal._write(wanted)
            return journal
        journal, size = cls._parse(path)
        if journal.config != wanted:
            said, first = _differences(journal.config, wanted)
            raise Rt3Error(
                f"'{path}' is the journal of another configuration: {said}: give the same options to go on with it, "
                f"another `output`, or `restart` {first} to do {_and_after(first)} again"
            )
        if size < path.stat().st_size:
            os.truncate(path, size)
        return journal

    @classmethod
    def restarted(cls, path: Path, config: dict[str, Any], phase: str) -> "Journal":
        """Return a journal without what a phase and those after it wrote, of a configuration that may differ from there on.

        It is not on disk before ``rewrite``.

        Raises
        ------
        Rt3Error
            No journal whose phases could be kept, or an option differs that mattered before.
        """
        new = _first_line(config)
        if phase == PHASES[0]:
            return cls(path, new)
        old = cls.read(path)
        if old.config != new:
            said, first = _differences(old.config, new)
            if PHASES.index(first) < PHASES.index(phase):
                raise Rt3Error(f"`restart` {phase}: {said}: that takes `restart` {first}, {_and_after(first)} again")
        kept = [r for r in old.records if phase == "joint" and r.get("kind") in ("child", "episode")]
        return cls(path, new, kept)

    @classmethod
    def read(cls, path: Path) -> "Journal":
        """Read a journal, also while a search writes it: the file stays as it is."""
        return cls._parse(path)[0]

    @classmethod
    def _parse(cls, path: Path) -> "tuple[Journal, int]":
        """Return a journal, and the bytes of its whole lines."""
        try:
            text = path.read_bytes()
        except OSError as error:
            raise Rt3Error(f"'{path}' cannot be read: {error.strerror}") from error
        whole = text[: text.rfind(b"\n") + 1]
        records = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise Rt3Error(f"{path}:{number}: damaged: {error}") from error
            if not isinstance(record, dict):
                raise Rt3Error(f"{path}:{number}: expected a JSON object")
            records.append(record)
        if not records or records[0].get("rt3_search") != VERSION:
            raise Rt3Error(f"{path}:1: no journal of rt3 search, version {VERSION}")
        return cls(path, records[0], records[1:]), len(whole)

    def rewrite(self) -> None:
        """Write all of it over what is there."""
        write_text(self.path, "".join(json.dumps(r) + "\n" for r in (self.config, *self.records)))

    def add(self, record: Record) -> None:
        """Append a record; it is on disk when this returns."""
        self._write(record)
        self.records.append(json.loads(json.dumps(record)))

    def of(self, kind: str) -> list[Record]:
        """Return the records of a kind, in order."""
        return [r for r in self.records if r.get("kind") == kind]

    def _write(self, record: Record) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise JobError(f"cannot write '{self.path}': {error.strerror or error}") from error


def _first_line(config: dict[str, Any]) -> Record:
    """Return a configuration as it is read back."""
    return json.loads(json.dumps({"rt3_search": VERSION} | config))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str]:
    """Return what differs, and the first phase that it matters in."""
    names = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    said = ", ".join(f"{n} was {json.dumps(old.get(n))}, is {json.dumps(new.get(n))}" for n in names)
    return said, min((matters_from(n, old, new) for n in names), key=PHASES.index)


def _and_after(phase: str) -> str:
    return "all" if phase == PHASES[0] else f"phase {phase}" + ("" if phase == PHASES[-1] else " and those after it")
