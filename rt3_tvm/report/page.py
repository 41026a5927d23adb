"""``rt3 report``: one HTML page with everything in it, to be opened by a double click and read on a phone."""

from collections.abc import Iterator
from pathlib import Path

from rt3_tvm.bench.peak import peak_gflops, stream_gbytes
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.energy.comparison import Comparison, SimulateOptions, compare
from rt3_tvm.errors import Rt3Error
from rt3_tvm.report import figures
from rt3_tvm.report.document import Picture, document
from rt3_tvm.report.ops import measure_ops


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
    pictures = [*_simulated(found), *_measured(bundle, level, len(loaded.levels)), patterns_picture(loaded)]
    title = f"{Path(found.model.path).name} on {found.device.title}"
    heads = ("configuration", "ms by level", "runs", "over the first", "hours", "missed", "mean accuracy")
    cluster = found.device.cluster
    foot = f", cluster {cluster.name}: {cluster.core}"
    return document(title, heads, [_cells(row) for row in found.rows], found.sources, pictures, foot)


def _simulated(found: Comparison) -> Iterator[Picture]:
    runs = found.sources["runs, hours, missed"]
    yield Picture("Frequency, level and missed deadlines", runs, figures.timeline(found))
    yield Picture(
        f"One charge, {'five' if len(found.rows) > 4 else 'four'} ways to spend it", runs, figures.batteries(found)
    )
    accuracy = f"Latency {found.sources['latency']}. Accuracy: {found.sources['accuracy']}."
    yield Picture("Accuracy against latency", accuracy, figures.accuracy_latency(found))


def _measured(bundle: Path | None, level: int | None, levels: int) -> Iterator[Picture]:
    titles = ("Where the time of one inference goes", "Roofline of the linear layers")
    if bundle is None:
        for title in titles:
            yield Picture(title, "Not measured: pass --bundle, the model compiled for this machine.", "")
        return
    chosen = levels // 2 if level is None else level
    if not 0 <= chosen < levels:
        raise Rt3Error(f"`level` {chosen}: the checkpoint has levels 0 to {levels - 1}")
    rows = measure_ops(bundle, chosen)
    said = f"Measured on this machine, one thread, medians, level {chosen} of {bundle.name}."
    yield Picture(titles[0], f"{said} What is no linear layer is hatched.", figures.kernels(rows))
    limits = f"{said} The limits are measured too: multiply-adds on registers, reading memory that no cache holds."
    yield Picture(titles[1], limits, figures.roofline(rows, peak_gflops(), stream_gbytes()))


def patterns_picture(checkpoint: Checkpoint) -> Picture:
    """Return the pattern sets of the largest matrix."""
    matrices = checkpoint.levels[0].matrices
    name = max(matrices, key=lambda n: matrices[n].backbone.shape[0] * matrices[n].backbone.shape[1])
    shape = matrices[name].patterns.shape
    count = len(matrices[name].patterns.columns)
    caption = (
        f"{name}: blocks of {shape.rows} rows x {shape.cols} columns that block pruning left, groups of {shape.group} rows, "
        f"{count} patterns in the set of level 0. Blue is kept. The patterns that most blocks take."
    )
    return Picture("Pattern sets", caption, figures.pattern_sets(checkpoint, name))


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
