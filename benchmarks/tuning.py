"""What tuning gains: plans that it found against those that are taken untuned, measured anew in rounds that interleave them.

``run.py tune`` prints the rows and, behind them, what they come to; ``python benchmarks/tuning.py FILE`` prints that of a run
which was stopped before its end.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import nan
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from rt3_tvm.bench.peak import peak_gflops
from rt3_tvm.schedules.linear_decisions import MatrixShape
from rt3_tvm.schedules.linear_plan import LinearPlan, TokenCount
from rt3_tvm.schedules.packing import OFFSET_UNIT
from rt3_tvm.schedules.tuned import Record, choose_plans, plan_of_json
from rt3_tvm.schedules.tuning_log import read_log
from rt3_tvm.tune.boards import Board, local_board
from rt3_tvm.tune.build import build_plans
from rt3_tvm.tune.measure import Pace, measure
from rt3_tvm.tune.options import TuneOptions
from rt3_tvm.tune.run import Setting, tune_tasks
from rt3_tvm.tune.tasks import MatrixTask

WIDTHS = {"minilm": (384, 1536), "distilbert": (768, 3072)}
"""Features of a model and of its feed-forward layers."""
GROUPS = (1, 2, 4)
DENSITIES = (0.5, 0.25, 0.1)
TOKENS = (TokenCount(1, 32), TokenCount(1, 128))
SESSIONS, ANEW = 3, Pace(25, 0.006)
"""Times that all is measured anew, each in a process of its own with arrays of its own, and how."""
CANDIDATES = 3
"""Of the plans that were tried, how many are measured anew to know the best one."""
SPARSE = 0.15
"""Density below which a kernel with V=1 has a bar of its own, for most tokens."""
NEAR = 1.1
"""Times the best found that an untuned plan should stay within."""


def matrices(models: list[str]) -> list[MatrixShape]:
    """Return the matrices of some models: dense, and at each density for each group."""
    found: list[MatrixShape] = []
    for name in models:
        width, wide = WIDTHS[name]
        for rows, cols in ((width, width), (wide, width), (width, wide)):
            found.append(MatrixShape.dense_of(rows, cols))
            found += [MatrixShape(rows, cols, round(cols * d), v) for v, d in product(GROUPS, DENSITIES)]
    return found


def rows(
    models: list[str], log: Path, trials: int, budget: float | None, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Tune the matrices of some models, as far as the log does not have them; yield a row for each number of tokens."""
    tasks = [MatrixTask(m, TOKENS) for m in matrices(models)]
    options = TuneOptions(trials=trials, budget=budget)
    setting = Setting.of(options)
    report = tune_tasks(tasks, options, setting, local_board(), log, say)
    say(f"{report.plans} plans in {report.seconds:.0f} s, {report.failed} failed")
    records = [r for r in read_log(report.log)[0] if r.current]
    ideal: dict[tuple[str, int], float] = {}
    with local_board() as (board,):
        for task in tasks:
            for row in _task_rows(task, setting, records, board):
                yield row | _of_ideal(row, ideal)


def _of_ideal(row: dict[str, Any], dense: dict[tuple[str, int], float]) -> dict[str, Any]:
    """Return the shares of ideal of a kernel: of the time of our own tuned dense kernel, which comes first, times the density."""
    untuned, key = row["untuned_us"], (row["matrix"], row["tokens"])
    tuned = untuned / row["gain"]
    if not row["group"]:
        dense[key] = tuned
    wanted = row["density"] * dense.get(key, nan)
    return {"of_ideal": wanted / untuned, "tuned_of_ideal": wanted / tuned}


@dataclass(frozen=True)
class Anew:
    """A plan, and its time over the untuned plan's in the same round, and seconds, over all sessions."""

    plan: LinearPlan
    ratios: tuple[float, ...]
    seconds: tuple[float, ...]
    sessions: tuple[float, ...]
    """The median ratio of each session."""

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return median(self.ratios)


def _task_rows(task: MatrixTask, setting: Setting, records: list[Record], board: Board) -> Iterator[dict[str, Any]]:
    needs = {(task.matrix, task.element): task.tokens}
    chosen = choose_plans(records, setting.core, setting.cpu, needs, task.threads)
    for part, default in zip(task.parts, task.default(setting.cpu), strict=True):
        mine = [r for r in records if r.task == part and r.ratio is not None]
        if not mine:
            continue
        mine.sort(key=lambda r: r.ratio[1] if r.ratio else 0.0)
        tuned = chosen.get(part.key, default)
        tried = [plan_of_json(r.plan, part) for r in mine]
        plans = list(dict.fromkeys([default, tuned, *list(dict.fromkeys(tried))[:CANDIDATES]]))
        anew = {found.plan: found for found in _measured(plans, task, setting, board)}
        yield _row(task, part.tokens, anew[default], anew[tuned], min(anew.values(), key=lambda a: a.ratio)) | {
            "tried": len({r.text for r in mine}) - 1
        }


def _row(task: MatrixTask, tokens: TokenCount, default: Anew, tuned: Anew, best: Anew) -> dict[str, Any]:
    m, untuned = task.matrix, median(default.seconds)
    flops = 2.0 * m.rows * m.kept * tokens.length
    return {
        "matrix": f"{m.rows}x{m.cols}",
        "group": 0 if m.dense else m.group,
        "density": m.kept / m.cols,
        "tokens": tokens.length,
        "untuned_us": untuned * 1e6,
        "of_peak": flops / untuned / 1e9 / peak_gflops(),
        "tuned_of_peak": flops / (untuned * tuned.ratio) / 1e9 / peak_gflops(),
        "gain": 1.0 / tuned.ratio,
        "gain_low": 1.0 / max(tuned.sessions),
        "untuned_over_best": 1.0 / best.ratio,
        "untuned": f"{default.plan} {default.plan.packing}",
        "tuned": "the same" if tuned.plan == default.plan else f"{tuned.plan} {tuned.plan.packing}",
        "best": "the same" if best.plan == tuned.plan else f"{best.plan} {best.plan.packing}",
    }


def _measured(plans: list[LinearPlan], task: MatrixTask, setting: Setting, board: Board) -> Iterator[Anew]:
    library = build_plans(plans, setting.tools)
    sessions = [
        measure(board.connect(), library, range(len(plans)), task.matrix.cols, OFFSET_UNIT, ANEW).times
        for _ in range(SESSIONS)
    ]
    for plan, times in zip(plans, zip(*sessions, strict=True), strict=True):
        ratios = tuple(a / b for t in times for a, b in t.quiet)
        yield Anew(plan, ratios, tuple(s for t in times for s, _ in t.quiet), tuple(t.ratio[1] for t in times))


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the bars ask of all rows."""
    gains = [row["gain"] for row in found]
    sparse = [
        row for row in found if row["group"] == 1 and row["density"] < SPARSE and row["tokens"] == TOKENS[-1].length
    ]
    near = sum(row["untuned_over_best"] <= NEAR for row in found)
    return {
        "kernels": len(found),
        "gain_geometric_mean": geometric_mean(gains),
        "least_gain": min(gains),
        "below_0.99": sum(g < 0.99 for g in gains),
        "changed": sum(row["tuned"] != "the same" for row in found),
        "untuned_within_10_percent_of_best": near / len(found),
        "least_of_ideal_v1_sparse": min((row["tuned_of_ideal"] for row in sparse), default=nan),
    }


def printed(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the table that a run has printed to a file."""
    lines = [
        line.strip().strip("|").split("|") for line in path.read_text(encoding="utf-8").splitlines() if "|" in line
    ]
    head, *found = [[cell.strip() for cell in line] for line in lines]
    texts = ("matrix", "untuned", "tuned", "best")
    whole = [row for row in found if len(row) == len(head) and row[0][0].isdigit()]
    return [{h: c if h in texts else float(c) for h, c in zip(head, row, strict=True)} for row in whole]


if __name__ == "__main__":
    for what, value in summary(printed(Path(sys.argv[1]))).items():
        print(f"{what}: {value:.4g}")
