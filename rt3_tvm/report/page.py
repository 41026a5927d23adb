"""``rt3 report``: one HTML page with everything in it, to be opened by a double click and read on a phone."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rt3_tvm import __version__
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.errors import Rt3Error
from rt3_tvm.hardware.comparison import Comparison, SimulateOptions, compare
from rt3_tvm.hardware.peak import peak_gflops, stream_gbytes
from rt3_tvm.report import figures
from rt3_tvm.report.ops import measure_ops

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; padding: 0.5rem; max-width: 1500px; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; align-items: start; }
figure { margin: 0; border: 1px solid #ddd; border-radius: 6px; padding: 0.5rem; }
figure svg { width: 100%; height: auto; }
figcaption, small { color: #444; font-size: 0.85rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 0 0 0.3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; }
td, th { border-bottom: 1px solid #ddd; padding: 0.2rem 0.6rem; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
@media (prefers-color-scheme: dark) { figure { background: #fff; } }
"""


@dataclass(frozen=True)
class _Picture:
    title: str
    caption: str
    svg: str


def write_page(checkpoint: Path, bundle: Path | None, options: SimulateOptions, level: int | None = None) -> str:
    """Return the page of a checkpoint.

    Parameters
    ----------
    bundle
        The same model compiled for this machine: its kernels are timed here. None leaves those two pictures out, and says so.
    options
        What is simulated.
    level
        Whose kernels are shown; None: the middle one.
    """
    figures.pyplot()
    loaded = Checkpoint.load(checkpoint)
    found = compare(checkpoint, options)
    pictures = [*_simulated(found), *_measured(bundle, level, len(loaded.levels)), _patterns(loaded)]
    return _html(found, pictures)


def _simulated(found: Comparison) -> Iterator[_Picture]:
    runs = found.sources["runs, hours, missed"]
    yield _Picture("Frequency, level and missed deadlines", runs, figures.timeline(found))
    yield _Picture("One charge, four ways to spend it", runs, figures.batteries(found))
    accuracy = f"Latency {found.sources['latency']}. Accuracy: {found.sources['accuracy']}."
    yield _Picture("Accuracy against latency", accuracy, figures.accuracy_latency(found))


def _measured(bundle: Path | None, level: int | None, levels: int) -> Iterator[_Picture]:
    titles = ("Where the time of one inference goes", "Roofline of the linear layers")
    if bundle is None:
        for title in titles:
            yield _Picture(title, "Not measured: pass --bundle, the model compiled for this machine.", "")
        return
    chosen = levels // 2 if level is None else level
    if not 0 <= chosen < levels:
        raise Rt3Error(f"--level {chosen}: the checkpoint has levels 0 to {levels - 1}")
    rows = measure_ops(bundle, chosen)
    said = f"Measured on this machine, one thread, medians, level {chosen} of {bundle.name}."
    yield _Picture(titles[0], f"{said} What is no linear layer is hatched.", figures.kernels(rows))
    limits = f"{said} The limits are measured too: multiply-adds on registers, reading memory that no cache holds."
    yield _Picture(titles[1], limits, figures.roofline(rows, peak_gflops(), stream_gbytes()))


def _patterns(checkpoint: Checkpoint) -> _Picture:
    matrices = checkpoint.levels[0].matrices
    name = max(matrices, key=lambda n: matrices[n].backbone.shape[0] * matrices[n].backbone.shape[1])
    shape = matrices[name].patterns.shape
    count = len(matrices[name].patterns.columns)
    caption = (
        f"{name}: blocks of {shape.rows} rows x {shape.cols} columns that block pruning left, groups of {shape.group} rows, "
        f"{count} patterns in the set of level 0. Blue is kept. The patterns that most blocks take."
    )
    return _Picture("Pattern sets", caption, figures.pattern_sets(checkpoint, name))


def _html(found: Comparison, pictures: list[_Picture]) -> str:
    escape = html.escape
    title = f"{Path(found.model.path).name} on {found.device.title}"
    body = "\n".join(
        f"<figure><h2>{escape(p.title)}</h2>{p.svg}<figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in pictures
    )
    heads = ("configuration", "ms by level", "runs", "over the first", "hours", "missed", "mean accuracy")
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row)) + "</tr>" for row in found.rows
    )
    sources = "\n".join(f"<li><b>{escape(k)}</b>: {escape(v)}</li>" for k, v in found.sources.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<div class="wide"><table><thead><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr></thead><tbody>{rows}</tbody></table></div>
<ul>{sources}</ul>
<main>
{body}
</main>
<small>rt3-tvm {escape(__version__)}, cluster {escape(found.device.cluster.name)}: {escape(found.device.cluster.core)}</small>
</body></html>
"""


def _cells(row: figures.Configuration) -> tuple[str, ...]:
    o = row.outcome
    return (
        row.name,
        " / ".join(f"{ms:.4g}" for ms in row.latency_ms),
        f"{o.runs:,}",
        f"{row.ratio:.2f}x",
        f"{o.seconds / 3600:.2f}",
        f"{o.missed:,}",
        "unknown" if row.accuracy is None else f"{row.accuracy:.4f}",
    )
