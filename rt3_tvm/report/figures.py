"""Pictures of ``rt3 report``, as SVG: 4.5 inches wide, so that their text keeps its size on a phone.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind people tell apart; lines differ in
dashes, points in markers besides.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.device import frequency_name
from rt3_tvm.energy.comparison import Comparison, Configuration
from rt3_tvm.errors import Rt3Error
from rt3_tvm.report.ops import OpRow
from rt3_tvm.schedules import LINEAR_FAMILIES

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^vP*"
WIDTH, HEIGHT = 4.5, 3.2
MOST_POINTS = 2000
"""Points of a line; more are finer than a screen."""


def pyplot() -> Any:
    """Return matplotlib.pyplot, drawing without a display.

    Raises
    ------
    Rt3Error
        It is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise Rt3Error("rt3 report needs matplotlib: pip install 'rt3-tvm[report]'") from None
    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "legend.fontsize": 8,
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "rt3",
        }
    )
    return plt


def to_svg(figure: Any) -> str:
    """Return a figure as an <svg> element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot().close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def new_axes(height: float = HEIGHT) -> tuple[Any, Any]:
    """Return a figure and its axes."""
    return pyplot().subplots(figsize=(WIDTH, height))


def _thin(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(int))


def timeline(found: Comparison) -> str:
    """Return frequency and level over time of RT3's configuration, deadlines missed by every configuration below."""
    plt = pyplot()
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(WIDTH, 4.4), sharex=True, height_ratios=(3, 2))
    row = found.rows[-1]
    segments = row.outcome.segments
    kept = [segments[i] for i in _thin(len(segments))] if segments else []
    hours = [s.start / 3600 for s in kept] + [row.outcome.seconds / 3600]
    ghz = [found.opps[s.index] / 1e9 for s in kept]
    top.step(hours, [*ghz, ghz[-1]], where="post", color="#888888", linewidth=1)
    for level in sorted({s.level for s in kept}):
        points = [(s.start / 3600, s.end / 3600, found.opps[s.index] / 1e9) for s in kept if s.level == level]
        x = np.array([v for a, b, _ in points for v in (a, b, np.nan)])
        y = np.array([v for *_, f in points for v in (f, f, np.nan)])
        density = found.model.levels[level].density
        top.plot(x, y, color=PALETTE[level % 7], linewidth=4, label=f"level {level}, density {density:.2f}")
    top.set_ylabel("GHz")
    top.set_ylim(0, max(found.opps) / 1e9 * 1.1)
    top.legend(loc="lower left")
    for i, other in enumerate(found.rows):
        ends, missed = _cumulative(other)
        bottom.plot(ends, missed, color=PALETTE[i], linestyle=DASHES[i], label=other.name)
    bottom.set_xlabel("hours")
    bottom.set_ylabel("missed (thousands)")
    figure.legend(*bottom.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return to_svg(figure)


def _cumulative(row: Configuration) -> tuple[list[float], np.ndarray]:
    segments = row.outcome.segments
    missed = np.cumsum([0] + [s.missed for s in segments])
    keep = _thin(len(missed))
    return [0.0 if i == 0 else segments[i - 1].end / 3600 for i in keep], missed[keep] / 1e3


def batteries(found: Comparison) -> str:
    """Return the charge left over time, and the inferences that it was good for, of every configuration."""
    figure, axes = new_axes()
    for i, row in enumerate(found.rows):
        segments = row.outcome.segments
        keep = _thin(len(segments))
        hours = [0.0, *(segments[k].end / 3600 for k in keep)]
        left = [found.options.battery_j / 1e3, *(segments[k].joules_left / 1e3 for k in keep)]
        label = f"{row.name}: {row.outcome.runs:,} runs"
        axes.plot(hours, left, color=PALETTE[i], linestyle=DASHES[i], marker=MARKERS[i], markevery=[-1], label=label)
    axes.set_xlabel("hours")
    axes.set_ylabel("kJ left")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return to_svg(figure)


def accuracy_latency(found: Comparison) -> str:
    """Return accuracy against latency by level at its frequency, the deadline drawn; density where no accuracy is known."""
    figure, axes = new_axes()
    rt3, dense = found.rows[-1], found.rows[1]
    known = [level.accuracy for level in found.model.levels]
    has_accuracy = all(a is not None for a in known)
    quality = [float(a or 0.0) for a in known] if has_accuracy else [level.density for level in found.model.levels]
    for i, (ms, y, hz) in enumerate(zip(rt3.latency_ms, quality, found.frequencies, strict=True)):
        axes.plot([ms], [y], MARKERS[i % 7], color=PALETTE[i % 7], label=f"level {i} at {frequency_name(hz)}")
    dense_quality = found.model.dense_accuracy if has_accuracy else 1.0
    if dense_quality is not None:
        axes.plot(
            dense.latency_ms, [dense_quality] * len(dense.latency_ms), "x", color=PALETTE[6], label="dense, same clocks"
        )
    if found.options.deadline_s:
        axes.axvline(1e3 * found.options.deadline_s, color=PALETTE[1], linestyle="--", label="deadline")
    axes.set_xlabel("ms")
    axes.set_xlim(left=0)
    axes.set_ylabel("accuracy" if has_accuracy else "density (accuracy unknown)")
    axes.legend()
    return to_svg(figure)


def kernels(rows: Sequence[OpRow]) -> str:
    """Return where the time of one inference goes, by kernel; those that are no linear layers are hatched."""
    shown, rest = list(rows[:9]), rows[9:]
    names = [f"{r.symbol.removeprefix('rt3_')} x{r.calls}" for r in shown]
    ms = [r.ms for r in shown]
    if rest:
        names.append(f"{len(rest)} others")
        ms.append(sum(r.ms for r in rest))
    figure, axes = new_axes(0.6 + 0.28 * len(ms))
    colours = [PALETTE[0] if "linear" in n else PALETTE[5] for n in names]
    bars = axes.barh(
        range(len(ms)), ms, color=colours, hatch=["" if "linear" in n else "//" for n in names], edgecolor="white"
    )
    axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.set_yticks(range(len(ms)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"ms, {sum(ms):.2f} in all")
    axes.margins(x=0.15)
    return to_svg(figure)


def pattern_sets(checkpoint: Checkpoint, name: str, count: int = 3) -> str:
    """Return patterns of a matrix at every level: the ones that most blocks take."""
    plt = pyplot()
    levels = checkpoint.levels
    figure, grid = plt.subplots(len(levels), count, figsize=(WIDTH, 1.0 + 0.9 * len(levels)), squeeze=False)
    for i, (level, axes_row) in enumerate(zip(levels, grid, strict=True)):
        matrix = level.matrices[name]
        shape, columns = matrix.patterns.shape, matrix.patterns.columns
        uses = np.bincount(matrix.assignment.ravel(), minlength=len(columns))
        order = np.argsort(-uses, kind="stable")[:count]
        for j, axes in enumerate(axes_row):
            axes.set_axis_off()
            if j >= len(order):
                continue
            kept = np.zeros((shape.rows // shape.group, shape.cols))
            np.put_along_axis(kept, columns[order[j]].astype(np.int64), 1.0, axis=1)
            picture = np.repeat(kept, shape.group, axis=0)
            axes.imshow(picture, cmap=_two_colours(), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axes.set_title(f"level {i}: {uses[order[j]] / uses.sum():.1%} of blocks", fontsize=8)
    return to_svg(figure)


def _two_colours() -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap(["#EEEEEE", PALETTE[0]])


def roofline(rows: Sequence[OpRow], peak: float, stream: float) -> str:
    """Return GFLOP/s of the linear layers' kernels over FLOPs per byte, under this machine's limits."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = new_axes()
    linear = [r for r in rows if r.family in LINEAR_FAMILIES]
    intensity = np.array([1e3 * r.gflop / r.mbytes for r in linear])
    x = np.geomspace(max(0.05, float(intensity.min()) / 2), float(intensity.max()) * 2, 100)
    axes.plot(
        x,
        np.minimum(peak, x * stream),
        color="#000000",
        label=f"limit: {peak:.0f} GFLOP/s, {stream:.0f} GB/s from memory",
    )
    for i, family in enumerate(LINEAR_FAMILIES):
        points = [(x, r.gflops) for x, r in zip(intensity, linear, strict=True) if r.family == family]
        if points:
            axes.plot(*zip(*points, strict=True), MARKERS[i], color=PALETTE[i], label=family)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("FLOPs of kept weights per byte")
    axes.set_ylabel("GFLOP/s, measured")
    axes.legend()
    return to_svg(figure)
