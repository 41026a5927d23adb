"""A run of the tuner that only pretends to build and to measure, for a test that kills it."""

import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rt3_tvm.schedules.linear_decisions import MatrixShape
from rt3_tvm.schedules.linear_plan import LinearPlan, TokenCount
from rt3_tvm.schedules.tuned import Record
from rt3_tvm.tune import boards, run
from rt3_tvm.tune.boards import Board
from rt3_tvm.tune.build import Library
from rt3_tvm.tune.log import Log
from rt3_tvm.tune.measure import Batch, PlanTimes
from rt3_tvm.tune.options import TuneOptions
from rt3_tvm.tune.run import Setting, tune_tasks
from rt3_tvm.tune.tasks import MatrixTask

TASK = MatrixTask(MatrixShape(768, 768, 192, 8), (TokenCount(1, 32), TokenCount(1, 128)))
TRIALS = 300
SECONDS = 0.1
"""That a batch pretends to take."""


def _built(plans: Sequence[LinearPlan], *_: Any) -> Library:
    return Library(b"", tuple(map(str, plans)), ())


def _measured(_session: Any, library: Library, chosen: Sequence[int], *_: Any) -> Batch:
    time.sleep(SECONDS)
    seconds = [1e-5 * (1 + zlib.crc32(library.entries[k].encode()) % 100 / 100) for k in chosen]
    return Batch(tuple(PlanTimes((s,) * 3, (seconds[0],) * 3) for s in seconds), {"hz": 1e9})


@contextmanager
def _thread(*_: Any) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


class _TellingLog(Log):
    """A log that says how many records are safe."""

    told: Connection

    def add(self, records: Sequence[Record]) -> None:
        super().add(records)
        self.told.send(len(self.records))


def tune_pretending(folder: Path, told: Connection) -> None:
    """Tune one task, and tell how many records are in the log whenever some were added."""
    run._built, run._builders, run.Log, boards.measure = _built, _thread, _TellingLog, _measured
    _TellingLog.told = told
    options = TuneOptions(trials=TRIALS)
    tune_tasks([TASK], options, Setting.of(options), nullcontext([Board("pretender", object)]), folder)
