"""Writing a log of records: appended whole, so that a run that is killed at any moment loses nothing that was finished."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.files import write_text
from rt3_tvm.schedules.tuned import Record
from rt3_tvm.schedules.tuning_log import logs_in, read_log


class Log:
    """A log on disk; ``records`` are those that it has."""

    def __init__(self, path: Path) -> None:
        """Begin a log, or go on with the one that is there; a line that a killed run has cut off is taken away."""
        self.path = path
        self.records: list[Record] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self.records, size = read_log(path)
                if size < path.stat().st_size:
                    os.truncate(path, size)
        except OSError as error:
            raise JobError(f"cannot write '{path}': {error.strerror or error}") from error

    def add(self, records: Sequence[Record]) -> None:
        """Append records; they are on disk when this returns."""
        lines = "".join(line_of(record) for record in records).encode()
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                written = os.write(handle, lines)
                if written != len(lines):
                    raise JobError(f"cannot write '{self.path}': {written} of {len(lines)} bytes were written")
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise JobError(f"cannot write '{self.path}': {error.strerror or error}") from error
        self.records += records


def line_of(record: Record) -> str:
    """Return a record as a line of a log."""
    return json.dumps(record.to_json()) + "\n"


def merge(sources: Iterable[Path], output: Path) -> int:
    """Write the records of some logs, or folders of logs, into one, each once; return how many there are.

    Raises
    ------
    Rt3Error
        Two of them are not of the same core.
    """
    lines: dict[str, Record] = {}
    for source in sources:
        for log in logs_in(source):
            lines |= {line_of(record): record for record in read_log(log)[0]}
    cores = {record.core for record in lines.values()}
    if len(cores) > 1:
        raise Rt3Error(f"`merge`: records of different cores: {', '.join(sorted(c.core for c in cores))}")
    write_text(output, "".join(lines))
    return len(lines)
