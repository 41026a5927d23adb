"""A sweep over the architectures of transformers: ``python benchmarks/zoo.py``; small random models, each level against PyTorch.

Each row runs in a process of its own, so that a crash or a hang is a result: build with random weights everywhere, save, load
as ``rt3 prune`` does, prune to three levels, compile at two lengths, and compare every level at each length and a shorter one,
padded left, right and not. ``--json FILE`` keeps each row as it ends, and a sweep that was stopped goes on from there.
docs/models.md holds what ``python benchmarks/zoo.py --markdown docs/models.md`` printed.
"""

import argparse
import json
import multiprocessing
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from zoo_rows import DECODER, GROUPS, HEAD, ODD, TEXT, TOWER, Row, rows

Record = dict[str, Any]
OUTCOMES = ("right", "wrong", "refused", "crash", "hang", "traceback", "export-refused", "left out")
BAD = ("wrong", "crash", "hang", "traceback")
"""Outcomes that must not be: the sweep ends with 1 where there is one."""

OF_TEXT = (TEXT, DECODER, HEAD, TOWER, ODD)
"""Groups that the bar counts, where a row takes ids."""

COLOURS = {"right": "green", "refused": "yellow", "export-refused": "dim", "left out": "dim"}
BEGIN, END = "<!-- zoo: begin -->", "<!-- zoo: end -->"


def run_row(row: Row, context: Any, timeout: float, effort: str) -> Record:
    """Return the record of a row.

    One that hangs before anything of ours has run is tried once more: a process that was forked can inherit a lock.
    """
    record = _try_row(row, context, timeout, effort)
    again = record["outcome"] == "hang" and record["stage"] in ("start", "build")
    return _try_row(row, context, timeout, effort) if again else record


def _try_row(row: Row, context: Any, timeout: float, effort: str) -> Record:
    """Return the record of a row, run in a process of its own."""
    import zoo_check

    receiver, sender = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile(prefix="rt3-zoo-log-") as log:
        process = context.Process(target=zoo_check.run_in_process, args=(row, log.name, effort, sender))
        process.start()
        sender.close()
        record = _receive(receiver, process, timeout)
        printed = Path(log.name).read_text(errors="replace").splitlines()
    if record["outcome"] == "crash" and printed:
        record["detail"] += f": {printed[-1][:200]}"
    return {"name": row.name, "group": row.group, "class": row.model_class} | record | {"printed": len(printed)}


def _receive(receiver: Any, process: Any, timeout: float) -> Record:
    """Wait for a row's record; the stage it was at where there comes none."""
    stage, late = "start", threading.Event()

    def end() -> None:
        late.set()  # before the process can end of it: whoever sees the end must see the reason
        process.kill()

    alarm = threading.Timer(timeout, end)
    alarm.start()
    try:
        while isinstance(message := receiver.recv(), str):
            stage = message
        return message
    except EOFError:
        process.join()
        if late.is_set():
            return {"outcome": "hang", "stage": stage, "detail": f"nothing after {timeout:.0f} s"}
        return {"outcome": "crash", "stage": stage, "detail": _signal_name(process.exitcode)}
    finally:
        alarm.cancel()
        process.join()


def _signal_name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def sweep(chosen: list[Row], args: argparse.Namespace, tell: Callable[[Record], None]) -> list[Record]:
    """Run rows, several at once; return their records in the order of the rows."""
    known = {r["name"]: r for r in _journal(args.json)}
    context = multiprocessing.get_context(
        "forkserver"
    )  # a process that has imported everything, and run nothing, is forked
    context.set_forkserver_preload(["zoo_check"])

    def one(row: Row) -> Record:
        if row.name in known:
            return known[row.name]
        record = run_row(row, context, args.timeout, args.effort)
        if args.json:
            with args.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        tell(record)
        return record

    with ThreadPoolExecutor(args.jobs) as pool:
        return list(pool.map(one, chosen))


def _journal(path: Path | None) -> Iterator[Record]:
    if path and path.is_file():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def cells(record: Record) -> tuple[str, ...]:
    """Return a record as the cells of its row: name, class, outcome, error, share of time in `elementwise`, what it says."""
    error = f"{record['error']:.1e}" if "error" in record and record["error"] < float("inf") else ""
    slow = f"{100 * record['elementwise']['time']:.0f} %" if "elementwise" in record else ""
    where = f"{record['stage']}: " if record["outcome"] in ("crash", "hang", "traceback") else ""
    said = record.get("control") or record.get("detail") or ""
    return (
        record["name"],
        record["class"],
        record["outcome"],
        error,
        slow,
        where + (said.splitlines() or [""])[0],
    )


HEADINGS = ("row", "class", "outcome", "error", "elementwise", "")


def counts(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """Return how many rows of each group have each outcome, and the groups together."""
    by_group = {group: Counter(r["outcome"] for r in records if r["group"] == group) for group in GROUPS}
    by_group["all"] = sum(by_group.values(), Counter())
    return [(group, *(str(c[o] or "") for o in OUTCOMES)) for group, c in by_group.items() if c]


def bar(records: Iterable[Record]) -> str:
    """Return the share of right rows among the text encoders and decoders that torch.export takes."""
    taken = [r for r in records if r["group"] in OF_TEXT and r["outcome"] not in ("left out", "export-refused")]
    right = sum(r["outcome"] == "right" for r in taken)
    return f"{right} of {len(taken)} text models that torch.export takes are right ({100 * right / max(1, len(taken)):.1f} %)"


def print_table(records: list[Record], console: Console) -> None:
    """Print the rows, the counts and the bar."""
    table = Table(*HEADINGS, box=None, pad_edge=False)
    for record in records:
        name, model_class, outcome, *rest = cells(record)
        table.add_row(name, model_class, f"[{COLOURS.get(outcome, 'red')}]{outcome}[/]", *rest)
    console.print(table)
    summary = Table("group", *OUTCOMES, box=None, pad_edge=False)
    for line in counts(records):
        summary.add_row(*line)
    console.print(summary)
    console.print(bar(records))


def markdown(records: list[Record]) -> str:
    """Return counts, bar and rows as Markdown, group by group; rows that were left out are told in one line each."""
    text = [_markdown_table(("group", *OUTCOMES), counts(records)), f"{bar(records)}.\n"]
    for group in GROUPS:
        tried = [r for r in records if r["group"] == group and r["outcome"] != "left out"]
        if tried:
            text += [f"### {group.capitalize()}\n", _markdown_table(HEADINGS, map(cells, tried))]
    left = [(r["name"], r["detail"]) for r in records if r["outcome"] == "left out"]
    if left:
        text += ["### Left out\n", _markdown_table(("row", "why"), left)]
    return "\n".join(text)


def _markdown_table(head: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    def text(line: tuple[str, ...]) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in line)} |"

    return "\n".join([text(head), "|---" * len(head) + "|", *map(text, lines)]) + "\n"


def write_markdown(path: Path, records: list[Record]) -> None:
    """Replace what stands between the two markers of a page."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{markdown(records)}\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Run the rows that were asked for; return 1 where one is wrong or dies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", action="append", default=[], metavar="GLOB", help="names, groups or classes; repeatable"
    )
    parser.add_argument(
        "--heads", action="store_true", help="every head of the registries too, not only those of the table"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="rows at once; default 2")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds of a row; default 300")
    parser.add_argument("--json", type=Path, metavar="FILE", help="journal; rows that it holds are not run again")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="page whose table is replaced")
    parser.add_argument(
        "--effort",
        choices=("whole", "quick", "control"),
        default="whole",
        help="quick: the sparsest level at one length; control: only whether torch.export takes the plain models",
    )
    parser.add_argument("--journaled", action="store_true", help="run nothing: print the rows that --json holds")
    parser.add_argument("--list", action="store_true", help="only name the rows")
    args = parser.parse_args()
    wanted = args.only or ["*"]
    chosen = [
        r for r in rows(args.heads) if any(fnmatch(v, g) for g in wanted for v in (r.name, r.group, r.model_class))
    ]
    if args.journaled:
        held = {record["name"] for record in _journal(args.json)}
        chosen = [r for r in chosen if r.name in held]
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    if args.list:
        console.print("\n".join(f"{r.name}  {r.group}  {r.model_class}" for r in chosen))
        return 0
    progress = Console(stderr=True, highlight=False)
    records = sweep(
        chosen, args, lambda r: progress.print("  ".join(filter(None, cells(r))), markup=False, overflow="ellipsis")
    )
    print_table(records, console)
    if args.markdown:
        write_markdown(args.markdown, records)
    return int(any(r["outcome"] in BAD for r in records))


if __name__ == "__main__":
    sys.exit(main())
