"""The journal of a search: one JSON object a line, only ever appended to, so that a search killed at any moment goes on.

The first line is the configuration; another one is refused. A last line that was cut off is dropped.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rt3_tvm.errors import JobError, Rt3Error

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
        wanted = json.loads(json.dumps({"rt3_search": VERSION} | config))
        if not path.is_file() or not path.stat().st_size:
            path.parent.mkdir(parents=True, exist_ok=True)
            journal = cls(path, wanted)
            journal._write(wanted)
            return journal
        journal = cls.read(path)
        if journal.config != wanted:
            raise Rt3Error(
                f"'{path}' is the journal of another configuration: {_differences(journal.config, wanted)}: "
                "give the same options to go on with it, another -o, or --restart to begin anew"
            )
        return journal

    @classmethod
    def read(cls, path: Path) -> "Journal":
        """Read a journal; what was cut off at its end is cut from the file too."""
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
        if len(whole) < len(text):
            os.truncate(path, len(whole))
        return cls(path, records[0], records[1:])

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


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    return ", ".join(f"{n} was {json.dumps(old.get(n))}, is {json.dumps(new.get(n))}" for n in names)
