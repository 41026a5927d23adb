"""``rt3 search --report``: the rewards of a search, accuracy against latency of its children, the patterns that were chosen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.errors import Rt3Error
from rt3_tvm.report import figures
from rt3_tvm.report.document import Picture, document
from rt3_tvm.report.page import patterns_picture
from rt3_tvm.search.journal import Journal
from rt3_tvm.search.pipeline import JOURNAL
from rt3_tvm.tasks import TASKS

Rows = Sequence[dict[str, Any]]
WINDOW = 10
"""Episodes that the mean of the rewards is over."""


def write_search_page(folder: Path, checkpoint: Path) -> str:
    """Return the page of a search, running or ended.

    Parameters
    ----------
    folder
        With its journal.
    checkpoint
        What it ends in; where that is not there yet, the page says so.

    Raises
    ------
    Rt3Error
        There is no journal.
    """
    figures.pyplot()
    if not (folder / JOURNAL).is_file():
        raise Rt3Error(f"no journal in '{folder}': run rt3 search with this `output` first")
    journal = Journal.read(folder / JOURNAL)
    episodes = journal.of("episode")
    metric = TASKS[journal.config["task"]].metric
    ended = (checkpoint / "checkpoint.json").is_file()
    loaded = Checkpoint.load(checkpoint) if ended else None
    pictures = list(_children(episodes, journal.config, metric))
    pictures.append(patterns_picture(loaded) if loaded else Picture("Pattern sets", "Not there yet.", ""))
    config = journal.config
    notes = {
        "search": f"{config['search']}, {len(episodes)} of {config['children']} children, seed {config['seed']}",
        "accuracy": f"{metric}; that of the children on the validation split",
        "deadline": f"{1e3 * config['deadline_s']:g} ms" if config["deadline_s"] else "none",
    }
    notes |= loaded.facts.get("sources", {}) if loaded else {}
    heads = ("", "GHz", "ms", "density", "valid", "test")
    return document(f"Search of {checkpoint.name}", heads, _rows(loaded), notes, pictures, f", model {config['model']}")


def _rows(checkpoint: Checkpoint | None) -> list[tuple[str, ...]]:
    if checkpoint is None:
        return []
    found = checkpoint.facts["figures"]
    accuracy = [f"{found['dense'][s]['accuracy']:.4f}" for s in ("valid", "test")]
    rows: list[tuple[str, ...]] = [("dense", "", "", "1", *accuracy)]
    for i, (row, level) in enumerate(zip(found["levels"], checkpoint.levels, strict=True)):
        accuracy = [f"{row[s]['accuracy']:.4f}" for s in ("valid", "test")]
        clock = f"{level.frequency_hz / 1e9:.4g}"
        rows.append((f"level {i}", clock, f"{row['latency_ms']:.4g}", f"{row['density']:.3f}", *accuracy))
    return rows


def _children(episodes: Rows, config: dict[str, Any], metric: str) -> list[Picture]:
    titles = ("Reward over episodes", "Accuracy against latency")
    if not episodes:
        return [Picture(title, "No child was proposed.", "") for title in titles]
    missed = sum(row["accuracy"] is None for row in episodes)
    rewards = (
        f"{len(episodes)} episodes, {missed} of them late or failed, {sum(r['repeated'] for r in episodes)} repeated."
    )
    front = "All children, by level; the line joins those that no other beats in both."
    levels = len(config["frequencies_hz"])
    scored = [row for row in episodes if row["accuracy"] is not None]
    picture = _fronts(scored, levels, 1e3 * config["deadline_s"], metric) if scored else ""
    return [Picture(titles[0], rewards, _rewards(episodes)), Picture(titles[1], front, picture)]


def _rewards(episodes: Rows) -> str:
    """Return rewards, their moving mean, and the best so far."""
    figure, axes = figures.new_axes()
    rewards = np.array([row["reward"] for row in episodes])
    number = np.arange(len(rewards))
    late = np.array([row["accuracy"] is None for row in episodes])
    palette = figures.PALETTE
    axes.plot(number[~late], rewards[~late], "o", color=palette[4], markersize=3, label="in time")
    if late.any():
        axes.plot(number[late], rewards[late], "x", color=palette[1], markersize=4, label="late or failed")
    mean = [rewards[max(0, i - WINDOW + 1) : i + 1].mean() for i in number]
    axes.plot(number, mean, color=palette[0], linestyle="--", label=f"mean of {WINDOW}")
    axes.plot(number, np.maximum.accumulate(rewards), color=palette[2], label="best so far")
    axes.set_xlabel("episode")
    axes.set_ylabel("reward")
    axes.legend()
    return figures.to_svg(figure)


def _fronts(scored: Rows, levels: int, deadline_ms: float, metric: str) -> str:
    """Return each child's accuracy against its latency, level by level, with the front of each level."""
    figure, axes = figures.new_axes()
    for level in range(levels):
        points = sorted((row["latency_ms"][level], -row["accuracy"][level]) for row in scored)  # best first
        x, y = np.array(points).T * [[1], [-1]]
        colour, marker = figures.PALETTE[level % 7], figures.MARKERS[level % 7]
        axes.plot(x, y, marker, color=colour, markersize=3, alpha=0.6, label=f"level {level}")
        best = y >= np.maximum.accumulate(y)
        axes.plot(x[best], y[best], color=colour, linestyle=figures.DASHES[level % 4])
    if deadline_ms:
        axes.axvline(deadline_ms, color=figures.PALETTE[6], linestyle=":", label="deadline")
    axes.set_xlabel("ms at the level's frequency")
    axes.set_ylabel(metric)
    axes.legend()
    return figures.to_svg(figure)
