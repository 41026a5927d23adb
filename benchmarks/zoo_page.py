"""What a sweep prints: rows, counts and the bar, in a terminal and on the page that keeps them, docs/models.md.

The page is its own record: rows that a sweep did not run again are read back from it, each with the effort and the commit
that it was swept with.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from zoo_rows import DECODER, GROUPS, HEAD, ODD, TEXT, TOWER, Row

Record = dict[str, Any]
LEFT_OUT = "left out"
OUTCOMES = ("right", "wrong", "refused", "crash", "hang", "traceback", "export-refused", LEFT_OUT)

OF_TEXT = (TEXT, DECODER, HEAD, TOWER, ODD)
"""Groups that the bar counts, where a row takes ids."""

COLOURS = {"right": "green", "refused": "yellow", "export-refused": "dim", LEFT_OUT: "dim"}
BEGIN, END = "<!-- zoo: begin -->", "<!-- zoo: end -->"
HEADINGS = ("row", "class", "outcome", "error", "elementwise", "swept", "")


def cells(record: Record) -> tuple[str, ...]:
    """Return a record as the cells of its row, under HEADINGS."""
    error = f"{record['error']:.1e}" if "error" in record and record["error"] < float("inf") else ""
    slow = f"{100 * record['elementwise']['time']:.0f} %" if "elementwise" in record else ""
    died = record["outcome"] in ("crash", "hang", "traceback") and record.get("stage")
    said = record.get("control") or record.get("detail") or ""
    return (
        *(record[k] for k in ("name", "class", "outcome")),
        error,
        slow,
        record.get("swept", ""),
        (f"{record['stage']}: " if died else "") + (said.splitlines() or [""])[0],
    )


def record_of(line: tuple[str, ...], group: str) -> Record:
    """Return the record that :func:`cells` made a row of."""
    name, model_class, outcome, error, slow, swept, said = line
    record: Record = {"name": name, "group": group, "class": model_class, "outcome": outcome, "swept": swept}
    if error:
        record["error"] = float(error)
    if slow:
        record["elementwise"] = {"time": float(slow.removesuffix(" %")) / 100}
    return record | {"detail": said}


def counts(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """Return how many rows of each group have each outcome, and the groups together."""
    records = list(records)
    by_group = {group: Counter(r["outcome"] for r in records if r["group"] == group) for group in GROUPS}
    by_group["all"] = sum(by_group.values(), Counter())
    return [(group, *(str(c[o] or "") for o in OUTCOMES)) for group, c in by_group.items() if c]


def bar(records: Iterable[Record]) -> str:
    """Return the share of right rows among the text encoders and decoders that torch.export takes."""
    taken = [r for r in records if r["group"] in OF_TEXT and r["outcome"] not in (LEFT_OUT, "export-refused")]
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
    sweeps = Counter(r["swept"] for r in records if r.get("swept")).most_common()
    swept = ", ".join(f"{number} {sweep}" for sweep, number in sweeps)
    text = [_markdown_table(("group", *OUTCOMES), counts(records)), f"{bar(records)}. Rows by sweep: {swept}.\n"]
    for group in GROUPS:
        tried = [r for r in records if r["group"] == group and r["outcome"] != LEFT_OUT]
        if tried:
            text += [f"### {group.capitalize()}\n", _markdown_table(HEADINGS, map(cells, tried))]
    left = [(r["name"], r.get("swept", ""), r["detail"]) for r in records if r["outcome"] == LEFT_OUT]
    if left:
        text += [f"### {LEFT_OUT.capitalize()}\n", _markdown_table(("row", "swept", "why"), left)]
    return "\n".join(text)


def _markdown_table(head: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    def text(line: tuple[str, ...]) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in line)} |"

    return "\n".join([text(head), "|---" * len(head) + "|", *map(text, lines)]) + "\n"


def kept(path: Path, known: Iterable[Row]) -> Iterator[Record]:
    """Yield the records of a page's rows; of those left out ``known`` has the group and the class."""
    rows = {row.name: row for row in known}
    table = path.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    for title, part in re.findall(r"^### (.*)\n((?:(?!###).*\n)*)", table, re.MULTILINE):
        for line in part.splitlines()[3:]:
            fields = tuple(cell.strip() for cell in line.strip("|").split("|"))
            if title.lower() in GROUPS and len(fields) == len(HEADINGS):
                yield record_of(fields, title.lower())
            elif title.lower() == LEFT_OUT and len(fields) == 3 and fields[0] in rows:
                row = rows[fields[0]]
                name, swept, why = fields
                yield {"name": name, "group": row.group, "class": row.model_class, "outcome": LEFT_OUT} | {
                    "swept": swept,
                    "detail": why,
                }


def write_markdown(path: Path, records: list[Record], known: Iterable[Row]) -> None:
    """Put rows on a page, between its two markers, in the order of ``known``; those that it has already stay."""
    known = list(known)
    merged = {r["name"]: r for r in kept(path, known)} | {r["name"]: r for r in records}
    ordered = [merged[row.name] for row in known if row.name in merged]
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    missing = ", ".join(row.name for row in known if row.name not in merged)
    table = markdown(ordered) + (f"\nNot swept: {missing}.\n" if missing else "")
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
