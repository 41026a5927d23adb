"""Logs of records on disk: those that come with the package, and others."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from rt3_tvm.errors import Rt3Error, choices
from rt3_tvm.files import open_regular
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.linear_plan import LinearPlan, PlanKey
from rt3_tvm.schedules.tuned import FINAL, CoreId, Needs, Record, choose_plans

SUFFIX = ".jsonl"


def shipped_logs() -> list[Path]:
    """Return the logs that come with the package, of all devices."""
    return sorted(Path(str(resources.files("rt3_tvm.tuning_logs"))).glob(f"*/*{SUFFIX}"))


def logs_in(path: Path) -> list[Path]:
    """Return the logs of a path: a file, or those of a folder.

    Raises
    ------
    Rt3Error
        There is none.
    """
    if path.is_dir():
        found = sorted(path.rglob(f"*{SUFFIX}"))
        if not found:
            raise Rt3Error(f"`tuning_log` {path}: no file in it ends in {SUFFIX}")
        return found
    if not path.is_file():
        raise Rt3Error(f"`tuning_log` {path}: no such file: rt3 tune writes them")
    return [path]


def read_log(path: Path) -> tuple[list[Record], int]:
    """Return the records of a log in order, and the bytes of its whole lines: one that was cut off at the end is left out.

    Raises
    ------
    Rt3Error
        It cannot be read, or a line is no record: it names the line.
    """
    try:
        with open_regular(path) as file:
            text = file.read()
    except OSError as error:
        raise Rt3Error(f"'{path}' cannot be read: {error.strerror}") from error
    whole = text[: text.rfind(b"\n") + 1]
    records = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            records.append(Record.of(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise Rt3Error(f"{path}:{number}: no record of rt3 tune: {reason}") from error
    return records, len(whole)


@dataclass(frozen=True)
class TuningLogs:
    """The records that hold for a core, and what is to be said of the others.

    ``ignored``: lines on records that do not hold any more.
    """

    core: CoreId
    records: tuple[Record, ...] = ()
    ignored: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, core: CoreId, path: Path | None = None) -> "TuningLogs":
        """Return the records of a core in the logs of a path, or in those that come with the package.

        Raises
        ------
        Rt3Error
            The path has no log, or none with records of the core.
        """
        logs = {log: read_log(log)[0] for log in (logs_in(path) if path is not None else shipped_logs())}
        own = {log: [r for r in records if r.core == core] for log, records in logs.items()}
        if path is not None and not any(own.values()):
            others = choices({_named(r.core) for records in logs.values() for r in records}) or "no core at all"
            raise Rt3Error(f"`tuning_log` {path}: no record of {_named(core)}: it has records of {others}")
        records = tuple(r for found in own.values() for r in found if r.current)
        return cls(core, records, tuple(filter(None, (_stale(log, found) for log, found in own.items()))))

    @property
    def decisive(self) -> list[dict[str, Any]]:
        """The records that can change what is compiled, as they stand in a log."""
        return [r.to_json() for r in self.records if r.stage == FINAL]

    def plans(self, needs: Needs, cpu: CpuShape, threads: int) -> dict[PlanKey, LinearPlan]:
        """Return the plans that the records speak for."""
        return choose_plans(self.records, self.core, cpu, needs, threads)


def _named(core: CoreId) -> str:
    return f"{core.core} with {core.registers} registers of {core.vector_bytes} bytes"


def _stale(log: Path, records: Iterable[Record]) -> str:
    """Return a line on the records of a log that are of other versions; empty without any."""
    old = Counter(f"kernels {r.versions.get('kernels')}, TVM {r.versions.get('tvm')}" for r in records if not r.current)
    return f"{log}: ignored {old.total()} records of other versions: {choices(old)}" if old else ""
