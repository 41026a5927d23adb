"""A sweep over the architectures of transformers: ``python benchmarks/zoo.py``; small random models, each level against PyTorch.

Each row runs in a process of its own, so that a crash or a hang is a result: build with random weights everywhere, save, load
as ``rt3 prune`` does, prune to three levels, compile at two lengths, and compare every level at each length and a shorter one,
padded left, right and not. ``--json FILE`` keeps each row as it ends, and a sweep that was stopped goes on from there.
docs/models.md holds what ``python benchmarks/zoo.py --markdown docs/models.md`` printed: the rows of a sweep take the place of
those that the page has of them, and the others stay, each with the effort and the commit of its sweep.
"""

import argparse
import json
import multiprocessing
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from machine import commit
from rich.console import Console
from zoo_page import Record, cells, print_table, write_markdown
from zoo_rows import Row, rows

BAD = ("wrong", "crash", "hang", "traceback")
"""Outcomes that must not be: the sweep ends with 1 where there is one."""


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
    swept = {"swept": f"{args.effort} {commit()}"}
    context = multiprocessing.get_context(
        "forkserver"
    )  # a process that has imported everything, and run nothing, is forked
    context.set_forkserver_preload(["zoo_check"])

    def one(row: Row) -> Record:
        if row.name in known:
            return known[row.name]
        record = run_row(row, context, args.timeout, args.effort) | swept
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
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="page that takes the rows, beside those it has")
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
        write_markdown(args.markdown, records, rows(args.heads))
    return int(any(r["outcome"] in BAD for r in records))


if __name__ == "__main__":
    sys.exit(main())
