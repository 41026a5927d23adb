"""``rt3 tune``: batches of plans are built on the cores of this machine while others are measured on the devices."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rt3_tvm import device as devices
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.device import Device
from rt3_tvm.errors import JobError, Rt3Error, reason
from rt3_tvm.files import held
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.linear_plan import LinearPlan
from rt3_tvm.schedules.packing import OFFSET_UNIT
from rt3_tvm.schedules.tuned import FINAL, TRIAL, CoreId, Record, choose_plans, plan_text, plan_to_json
from rt3_tvm.schedules.tuning_log import SUFFIX, TuningLogs
from rt3_tvm.tune.boards import Board, Boards, Done, Job, local_board, tracked_boards
from rt3_tvm.tune.build import Library, Toolchain, build_plans
from rt3_tvm.tune.cost import Ranker, need_xgboost
from rt3_tvm.tune.log import Log
from rt3_tvm.tune.measure import FINALS, TRIALS, PlanTimes
from rt3_tvm.tune.options import TuneOptions
from rt3_tvm.tune.search import TaskSearch
from rt3_tvm.tune.space import Trial
from rt3_tvm.tune.tasks import MatrixTask, chosen_tasks, tasks_of

BATCH_PLANS = 16
"""Plans of a batch: kernels of one object, one upload."""
ON_THEIR_WAY = 2
"""Batches of a task that are built or measured at once: a third would be chosen without what the first one taught."""
TICK = 0.5
"""Seconds between looks at what was built."""


@dataclass(frozen=True)
class Setting:
    """For whom a log is made: the device, its core, what is built with."""

    device: Device
    core: CoreId
    tools: Toolchain

    @classmethod
    def of(cls, options: TuneOptions) -> "Setting":
        """Return the setting that options ask for."""
        device = devices.load(options.device)
        if options.cluster is not None:
            device = device.with_cluster(options.cluster)
        cluster = device.cluster
        cpu = CpuShape.of(cluster)
        tools = Toolchain.of(cpu, cluster.target_dict(), options.cross_compiler, options.threads)
        return cls(device, CoreId.of(cluster.core, cpu), tools)

    @property
    def cpu(self) -> CpuShape:
        """The shape of the core."""
        return self.tools.cpu

    def log(self, folder: Path | None) -> Path:
        """Return where its log is."""
        return (folder or Path("tuning_logs") / self.device.name) / f"{self.core.core}{SUFFIX}"


@dataclass(frozen=True)
class TaskResult:
    """A task, and for each number of tokens the part of the untuned plan's time that the chosen plan takes."""

    task: MatrixTask
    tried: int
    ratios: tuple[float, ...]


@dataclass(frozen=True)
class TuneReport:
    """What a run has found; ``plans`` were measured in ``seconds``, ``failed`` crashed or did not build."""

    log: Path
    results: tuple[TaskResult, ...]
    plans: int
    failed: int
    seconds: float
    out_of_time: bool


def tune(
    checkpoint: Checkpoint,
    options: TuneOptions,
    output: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> TuneReport:
    """Tune the matrices of a checkpoint on a device; the log is written as it goes.

    Parameters
    ----------
    output
        Folder of the log, CORE.jsonl in it; what is there is gone on with. None: ``tuning_logs/DEVICE``.

    Raises
    ------
    Rt3Error
        No such device, tracker, key or task; xgboost is not installed; another run writes the log.
    JobError
        No device is left, or the budget ended before one plan was measured.
    """
    need_xgboost()
    setting = Setting.of(options)
    boards = _boards(options)
    numbers = options.tasks if isinstance(options.tasks, tuple) else None
    tasks = chosen_tasks(tasks_of(checkpoint, options, setting.device, progress), numbers)
    return tune_tasks(tasks, options, setting, boards, output, progress)


def tune_tasks(
    tasks: Sequence[MatrixTask],
    options: TuneOptions,
    setting: Setting,
    boards: AbstractContextManager[list[Board]],
    output: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> TuneReport:
    """Tune some tasks, in their order, on some devices; see :func:`tune`."""
    path = setting.log(output)
    with held(path.parent), boards as found, _builders(len(found), options) as pool:
        tuner = _Tuner(tasks, options, setting, Log(path), progress)
        return tuner.run(Boards(found, progress), pool)


def _boards(options: TuneOptions) -> AbstractContextManager[list[Board]]:
    """Return the devices to measure on.

    Raises
    ------
    Rt3Error
        This machine is not the device that is tuned for, or there is nothing at the tracker.
    """
    if options.rpc_tracker is not None and options.rpc_key is not None:
        return nullcontext(tracked_boards(options.rpc_tracker, options.rpc_key))
    if options.device != "host":
        here, wanted = devices.load("host").cluster, Setting.of(options).device.cluster
        if here.core != wanted.core:
            raise Rt3Error(
                f"`device` {options.device}: this machine is a {here.core}, not a {wanted.core}: give `rpc_tracker` and `rpc_key`"
            )
    return local_board()


@contextmanager
def _builders(boards: int, options: TuneOptions) -> Iterator[ProcessPoolExecutor]:
    """Yield processes that build: a core is left to measure on where that is done here."""
    cores = len(os.sched_getaffinity(0)) - (options.rpc_tracker is None)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max(1, min(cores, 2 * boards)), context, _end_with, (os.getpid(),))
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _end_with(parent: int) -> None:
    """End this process soon after another one, however that one ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(eq=False)
class _Batch:
    """What is built and measured at once: plans of a task, the untuned ones first; ``jobs`` are on their way."""

    search: TaskSearch
    trials: tuple[Trial, ...]
    stage: str
    jobs: int = 0

    def plans(self, i: int) -> tuple[LinearPlan, ...]:
        """Return the plans for one number of tokens, equal ones once."""
        return tuple(dict.fromkeys(trial.plans[i] for trial in self.trials))

    @property
    def lengths(self) -> range:
        """The numbers of tokens, by their place in the task."""
        return range(len(self.search.task.parts))


@dataclass(frozen=True)
class _Part:
    """The plans of a batch for one number of tokens, and where they begin in the library."""

    batch: _Batch
    i: int
    plans: tuple[LinearPlan, ...]
    first: int


class _Tuner:
    """One run."""

    def __init__(
        self,
        tasks: Sequence[MatrixTask],
        options: TuneOptions,
        setting: Setting,
        log: Log,
        progress: Callable[[str], None],
    ) -> None:
        self.options, self.setting, self.log, self.progress = options, setting, log, progress
        earlier = TuningLogs.of(setting.core).records
        own = [r for r in log.records if r.core == setting.core]
        self.learnt = [*earlier, *(r for r in own if r.current)]
        self.searches = [TaskSearch(i, t, setting.cpu, own, options.seed) for i, t in enumerate(tasks)]
        self.ranker, self.learnt_from = Ranker(setting.cpu), -1
        self.building: dict[Future[Library | str], _Batch] = {}
        self.waiting: list[Job] = []
        self.plans = self.failed = self.measuring = 0

    def run(self, boards: Boards, pool: ProcessPoolExecutor) -> TuneReport:
        """Try, measure and decide until all tasks have their trials, or the time is over."""
        start = time.monotonic()
        end = start + (self.options.budget or float("inf"))
        while True:
            over = self._is_over(end)
            self._begin_builds(pool, boards, over)
            if not self.building and not self.measuring:
                if not self.waiting:
                    break
                self._decide(boards)
            self._collect_builds(pool, boards)
            if self.measuring:
                done = boards.next(TICK)
                self._is_over(end)  # what comes too late does not count as one that was measured in time
                if done is not None:
                    self._take(done, boards)
            else:
                wait(self.building, timeout=TICK, return_when=FIRST_COMPLETED)
        seconds = time.monotonic() - start
        return TuneReport(self.log.path, tuple(self._results()), self.plans, self.failed, seconds, over)

    def _is_over(self, end: float) -> bool:
        """Return whether the time is over.

        Raises
        ------
        JobError
            It is, and of these tasks not one plan was measured, in this run or an earlier one: there is nothing to decide.
        """
        if time.monotonic() < end:
            return False
        if not any(search.begun for search in self.searches):
            raise JobError(f"`budget` {self.options.budget:g} s ended before one plan was measured: give it more time")
        return True

    def _begin_builds(self, pool: ProcessPoolExecutor, boards: Boards, over: bool) -> None:
        """Keep the builders busy, not further ahead of the devices than some batches for each."""
        while len(self.building) + self.measuring < 2 * len(boards.alive) + 1:
            batch = next(filter(None, (self._next(search, over) for search in self.searches)), None)
            if batch is None:
                return
            batch.search.on_its_way += 1
            self._build(pool, batch)

    def _build(self, pool: ProcessPoolExecutor, batch: _Batch) -> None:
        plans = [plan for i in batch.lengths for plan in batch.plans(i)]
        self.building[pool.submit(_built, plans, self.setting.tools)] = batch

    def _next(self, search: TaskSearch, over: bool) -> _Batch | None:
        """Return what is to be built next of a task; None where that waits for what is on its way, or nothing is left."""
        size = max(4, BATCH_PLANS // len(search.task.parts))
        left = 0 if over else self.options.trials - search.tried - search.on_its_way * size
        if left > 0 and search.on_its_way < ON_THEIR_WAY:
            self._learn()
            trials = search.offer(min(left, size), self.ranker)
            if trials:
                return _Batch(search, (search.default, *trials), TRIAL)
        if search.on_its_way or not search.undecided:
            return None
        search.undecided = False
        return _Batch(search, (search.default, *search.finalists()), FINAL)

    def _learn(self) -> None:
        if len(self.learnt) != self.learnt_from:
            self.ranker.learn(self.learnt)
            self.learnt_from = len(self.learnt)

    def _collect_builds(self, pool: ProcessPoolExecutor, boards: Boards) -> None:
        """Give what was built to the devices, a job for each number of tokens."""
        for future in [f for f in self.building if f.done()]:
            batch, library = self.building.pop(future), _result(future)
            if isinstance(library, str):
                self._not_built(pool, batch, library)
                continue
            first, task = 0, batch.search.task
            for i in batch.lengths:
                part = _Part(batch, i, batch.plans(i), first)
                chosen = tuple(range(first, first + len(part.plans)))
                pace = TRIALS if batch.stage == TRIAL else FINALS
                job = Job(part, library, chosen, task.matrix.cols, OFFSET_UNIT, pace)
                if batch.stage == FINAL and self.options.rpc_tracker is None:
                    self.waiting.append(job)
                else:
                    self._measure(job, boards)
                first += len(part.plans)
                batch.jobs += 1

    def _measure(self, job: Job, boards: Boards) -> None:
        boards.put(job)
        self.measuring += 1

    def _decide(self, boards: Boards) -> None:
        """Measure what decides on this machine once nothing is built on it any more.

        Cores often share their units, or at least a cache: beside a build, a plan that keeps more in the caches loses up to a
        tenth of its speed to one that keeps less, and would lose the decision with it.
        """
        for job in self.waiting:
            self._measure(job, boards)
        self.waiting.clear()

    def _not_built(self, pool: ProcessPoolExecutor, batch: _Batch, error: str) -> None:
        """Build the halves of a batch, so that the plan that does not build is found."""
        default, *trials = batch.trials
        if len(trials) > 1:
            middle = len(trials) // 2
            batch.search.on_its_way += 1
            for half in (trials[:middle], trials[middle:]):
                self._build(pool, _Batch(batch.search, (default, *half), batch.stage))
            return
        batch.search.on_its_way -= 1
        for i in batch.lengths:
            part = _Part(batch, i, batch.plans(i), 0)
            self._keep(part, [self._record(part, plan, error=f"not built: {error}") for plan in part.plans[1:]])

    def _take(self, done: Done, boards: Boards) -> None:
        """Keep what was measured, or try a job that failed again, then its halves."""
        job, part = done.job, done.job.name
        if done.batch is None and job.failures == 0:
            boards.put(replace(job, failures=1))
            return
        if done.batch is None and len(job.chosen) > 2:
            for half in job.halves():
                boards.put(half)
            self.measuring += 1
            part.batch.jobs += 1
            return
        self.measuring -= 1
        part.batch.jobs -= 1
        plans = [part.plans[k - part.first] for k in job.chosen]
        if done.batch is None:
            records = [self._record(part, plan, error=done.error) for plan in plans[1:] or plans]
        else:
            measured = zip(plans, done.batch.times, strict=True)
            records = [
                self._record(part, plan, times, done.batch.state | {"board": done.board}) for plan, times in measured
            ]
        self._keep(part, records)
        if part.batch.jobs == 0:
            part.batch.search.on_its_way -= 1
            self._say(part.batch)

    def _record(
        self,
        part: _Part,
        plan: LinearPlan,
        times: PlanTimes | None = None,
        state: dict[str, Any] | None = None,
        error: str = "",
    ) -> Record:
        search = part.batch.search
        return Record(
            stage=part.batch.stage,
            task=search.task.parts[part.i],
            plan=plan_to_json(plan),
            core=self.setting.core,
            seconds=times.median if times else None,
            spread=(min(times.seconds), max(times.seconds)) if times else None,
            ratio=times.ratio if times else None,
            rounds=len(times.quiet) if times else 0,
            against=search.against(part.i),
            device={"name": self.setting.device.name} | (state or {}),
            error=error,
        )

    def _keep(self, part: _Part, records: list[Record]) -> None:
        """Write records to the log; of the untuned plan one trial is enough."""
        search, wanted = part.batch.search, []
        for record in records:
            default = record.text == plan_text(record.against)
            if part.batch.stage == FINAL or not default or not search.has_default(part.i):
                wanted.append(record)
                search.take(record)
            self.plans += not record.error and not default
            self.failed += bool(record.error)
        self.log.add(wanted)
        self.learnt += wanted

    def _say(self, batch: _Batch) -> None:
        search = batch.search
        what = f"{search.tried} of {self.options.trials} tried" if batch.stage == TRIAL else "decided"
        self.progress(f"task {search.number}: {search.task}: {what}, best {search.best:.3f} of the untuned time")

    def _results(self) -> Iterator[TaskResult]:
        """Yield what the log says of each task now: what the compiler would take."""
        for search in self.searches:
            task = search.task
            needs = {(task.matrix, task.element): task.tokens}
            plans = choose_plans(self.log.records, self.setting.core, self.setting.cpu, needs, task.threads)
            yield TaskResult(
                task, search.tried, tuple(search.ratio(i, plans.get(p.key)) for i, p in enumerate(task.parts))
            )


def _built(plans: Sequence[LinearPlan], tools: Toolchain) -> Library | str:
    """Return the library of some plans, or why it is not to be had: not every error can go from process to process."""
    try:
        return build_plans(plans, tools)
    except Exception as error:
        return reason(error)


def _result(future: "Future[Library | str]") -> Library | str:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise JobError("a process that builds kernels ended: is there enough memory?") from error
