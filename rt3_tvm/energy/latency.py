"""What a level takes at a frequency: one interface, RT3's analytic model and tables that were measured.

Every model says where its figures come from (``source`` begins with "modelled" or "measured"): what shows them, shows that too.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from rt3_tvm import rt3
from rt3_tvm.device import Device, frequency_name, lowest_in_time
from rt3_tvm.errors import Rt3Error
from rt3_tvm.options import DTYPES, FLOAT32

TABLE_FORMAT = "rt3-latency-1"
DENSE_GROUP = 0
"""Group under which a table has the dense kernel."""


@dataclass(frozen=True)
class MatrixLoad:
    """One matrix of a model at one level.

    Parameters
    ----------
    rows, cols
        Outputs by inputs.
    density
        Part of the weights that is kept, in (0, 1].
    group
        V: rows that keep the same columns; 0 for the dense kernel.
    lookup
        Whether tokens look rows up in it: no product, so only RT3's own count takes time for it.
    saved_adds
        Additions that the dense product saves; None: one for each row.
    dtype
        What is multiplied. RT3's model counts multiplications, whatever they are of.
    """

    rows: int
    cols: int
    density: float = 1.0
    group: int = DENSE_GROUP
    lookup: bool = False
    saved_adds: int | None = None
    dtype: str = FLOAT32

    @property
    def weights(self) -> int:
        """Weights of the dense matrix."""
        return self.rows * self.cols


Loads = Sequence[MatrixLoad]


def at_density(loads: Loads, density: float, group: int = DENSE_GROUP) -> tuple[MatrixLoad, ...]:
    """Return the matrices with one density and group in all of them."""
    return tuple(replace(m, density=density, group=group if density < 1.0 else DENSE_GROUP) for m in loads)


class LatencyModel(Protocol):
    """What the search, the level table and the simulation ask."""

    @property
    def source(self) -> str:
        """Where the figures come from; begins with "modelled" or "measured"."""

    def seconds(self, hz: float, loads: Loads) -> float:
        """Return the s of one inference at a frequency."""


@dataclass(frozen=True)
class Rt3Latency:
    """RT3's analytic model: multiplications and additions of the kept weights, at a rate that follows the clock.

    ``tokens``: how often every matrix is used in one inference. RT3 counts one.
    """

    tokens: int = 1

    @property
    def source(self) -> str:
        """Where the figures come from."""
        return f"modelled: RT3's constants of a 3 GHz CPU, {self.tokens} token{'s' if self.tokens > 1 else ''}"

    def seconds(self, hz: float, loads: Loads) -> float:
        """Return the s of one inference at a frequency."""
        multiplies = sum(m.weights * m.density for m in loads)
        adds = multiplies - sum(m.rows if m.saved_adds is None else m.saved_adds for m in loads)
        ms = self.tokens * (rt3.MS_PER_MULTIPLY * multiplies + rt3.MS_PER_ADD * adds)
        return max(0.0, ms) * 1e-3 * rt3.REFERENCE_HZ / hz


@dataclass(frozen=True)
class TableRow:
    """A kernel, or with ``rows`` 0 everything but the linear layers, as it was measured at one frequency.

    ``compute_s`` follows the clock (operands in the caches), ``memory_s`` is what waiting for cold weights adds and does not.
    ``dtype``: what it multiplies.
    """

    rows: int
    cols: int
    group: int
    density: float
    hz: float
    compute_s: float
    memory_s: float
    dtype: str = FLOAT32

    def seconds_at(self, hz: float) -> float:
        """Return the s at another frequency."""
        return self.compute_s * self.hz / hz + self.memory_s


@dataclass(frozen=True)
class TableLatency:
    """Latencies that were measured, by matrix shape, group, density, element type and frequency; see ``rt3 bench latency``.

    At a frequency that was not measured, those of the nearest one are scaled. Between densities the line is straight, from the
    densest that was measured on to the dense kernel; below the sparsest one a matrix takes as long as there. ``core``: LLVM's
    name of the core it was measured on.
    """

    core: str
    tokens: int
    threads: int
    table: tuple[TableRow, ...]
    path: str = field(default="", compare=False)

    @property
    def source(self) -> str:
        """Where the figures come from."""
        clocks = ", ".join(map(frequency_name, self._frequencies))
        return (
            f"measured on a {self.core} at {clocks}, {self.tokens} tokens, threads: {self.threads}; at other frequencies "
            "modelled from those: the part that runs in the caches follows the clock, waiting for memory does not"
        )

    @cached_property
    def _frequencies(self) -> list[float]:
        return sorted({row.hz for row in self.table})

    @cached_property
    def _curves(self) -> dict[tuple[int, int, int, str, float], list[TableRow]]:
        curves: dict[tuple[int, int, int, str, float], list[TableRow]] = {}
        for row in sorted(self.table, key=lambda r: r.density):
            curves.setdefault((row.rows, row.cols, row.group, row.dtype, row.hz), []).append(row)
        for (rows, cols, group, dtype, hz), curve in curves.items():
            dense = curves.get((rows, cols, DENSE_GROUP, dtype, hz))
            if group != DENSE_GROUP and dense and curve[-1].density < 1.0:
                curve.append(replace(dense[-1], density=1.0))
        return curves

    def seconds(self, hz: float, loads: Loads) -> float:
        """Return the s of one inference at a frequency."""
        nearest = min(self._frequencies, key=lambda f: abs(f - hz))
        total = self._at(MatrixLoad(0, 0), nearest, hz)
        for m in loads:
            if not m.lookup:
                dense = self._at(replace(m, group=DENSE_GROUP, density=1.0), nearest, hz)
                sparse = self._at(m, nearest, hz) if m.group and m.density < 1.0 else dense
                total += min(dense, sparse)  # the compiler takes the dense kernel where it is faster
        return total

    def _at(self, m: MatrixLoad, measured_hz: float, hz: float) -> float:
        rows, cols, density = m.rows, m.cols, m.density
        curve = self._curves.get((rows, cols, m.group, m.dtype, measured_hz))
        if curve is None:
            known = sorted({f"{r.rows}x{r.cols} V={r.group}{_named(r.dtype)}" for r in self.table if r.rows})
            what = f"{rows}x{cols} with V={m.group}{_named(m.dtype)}" if rows else "everything but the linear layers"
            raise Rt3Error(
                f"{self.path}: no latency of {what}: it has {', '.join(known)}: measure with rt3 bench latency"
            )
        after = bisect_left([r.density for r in curve], density)
        if after == 0 or after == len(curve):
            return curve[min(after, len(curve) - 1)].seconds_at(hz)
        low, high = curve[after - 1], curve[after]
        part = (density - low.density) / (high.density - low.density)
        return (1 - part) * low.seconds_at(hz) + part * high.seconds_at(hz)

    def to_json(self) -> dict[str, Any]:
        """Return the table as it is kept in a file; seconds and Hz."""
        rows = [asdict(row) for row in self.table]
        return {"format": TABLE_FORMAT, "core": self.core, "tokens": self.tokens, "threads": self.threads} | {
            "rows": rows
        }

    @classmethod
    def load(cls, path: Path) -> "TableLatency":
        """Read a table from a file.

        Raises
        ------
        Rt3Error
            No such file, not a table of latencies, or a row that cannot be: it names the row and the key.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Rt3Error(f"`latency` {path}: {error}") from error
        if not isinstance(data, dict) or data.get("format") != TABLE_FORMAT:
            found = data.get("format") if isinstance(data, dict) else None
            raise Rt3Error(f"{path}: format {found!r}, expected '{TABLE_FORMAT}': rt3 bench latency writes such files")
        rows = data.get("rows")
        if not isinstance(rows, list) or not rows:
            raise Rt3Error(f"{path}: 'rows' must be a list that is not empty")
        for key in ("tokens", "threads"):
            if not isinstance(data.get(key), int) or data[key] < 1:
                raise Rt3Error(f"{path}: '{key}' must be a positive whole number, not {data.get(key)!r}")
        table = tuple(_read_row(row, f"{path}: rows[{i}]") for i, row in enumerate(rows))
        return cls(
            str(data.get("core", "core that it does not name")), data["tokens"], data["threads"], table, str(path)
        )


def _named(dtype: str) -> str:
    """Return what is said of an element type beside a group: nothing of float32."""
    return "" if dtype == FLOAT32 else f" {dtype}"


def _read_row(row: Any, where: str) -> TableRow:
    if not isinstance(row, dict):
        raise Rt3Error(f"{where}: must be a table, not {row!r}")
    limits = {
        "rows": (0, 1 << 24),
        "cols": (0, 1 << 24),
        "group": (0, 1 << 16),
        "density": (1e-6, 1.0),
        "hz": (1e6, 1e11),
        "compute_s": (0.0, 3600.0),
        "memory_s": (0.0, 3600.0),
    }
    values: dict[str, Any] = {}
    for key, (low, high) in limits.items():
        value = row.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise Rt3Error(f"{where}: '{key}' must be a number in [{low:g}, {high:g}], not {value!r}")
        values[key] = int(value) if key in ("rows", "cols", "group") else float(value)
    unknown = set(row) - set(limits) - {"dtype"}
    if unknown:
        raise Rt3Error(f"{where}: unknown key '{min(unknown)}'")
    if row.get("dtype", FLOAT32) not in DTYPES:
        raise Rt3Error(f"{where}: 'dtype' must be one of {', '.join(DTYPES)}, not {row['dtype']!r}")
    return TableRow(**values, dtype=row.get("dtype", FLOAT32))


def latency_model(name: str, tokens: int) -> LatencyModel:
    """Return RT3's model for ``rt3``, else the table in the file of that name."""
    return Rt3Latency(tokens) if name == "rt3" else TableLatency.load(Path(name))


def source_for(model: LatencyModel, core: str) -> str:
    """Return where the figures come from, and a warning where they are another core's than ``core``."""
    if isinstance(model, TableLatency) and model.core != core:
        return f"{model.source}; this is a {core}: how the levels compare may hold, the ms do not"
    return model.source


def frequencies_in_time(
    device: Device, levels: Sequence[Loads], latency: str, tokens: int, deadline_s: float
) -> tuple[tuple[float, ...], str]:
    """Return for each level the lowest operating point of a device that meets a deadline, and where the latency comes from.

    Raises
    ------
    Rt3Error
        The device shows no operating points, or a level is late, or would never run.
    """
    cluster = device.cluster
    if not cluster.opps:
        raise Rt3Error(f"`latency`: device '{device.name}' shows no operating points: give `frequencies`")
    model = latency_model(latency, tokens)
    seconds = [partial(model.seconds, loads=loads) for loads in levels]
    return lowest_in_time(seconds, [opp.hz for opp in cluster.opps], deadline_s), source_for(model, cluster.core)


def smallest_sparsity(
    model: LatencyModel, loads: Loads, hz: float, deadline: float, group: int = 1, at_least: float = 0.0
) -> float:
    """Return the smallest sparsity, but ``at_least``, the same in every matrix, whose latency is within ``deadline`` s.

    Raises
    ------
    Rt3Error
        No sparsity is enough; it says how near the sparsest comes.
    """
    sparsest = 1.0 - 1e-6
    low, high = 0.0, sparsest
    if model.seconds(hz, at_density(loads, 1.0 - high, group)) > deadline:
        best = model.seconds(hz, at_density(loads, 1.0 - high, group))
        raise Rt3Error(
            f"no sparsity meets {deadline * 1e3:g} ms at {frequency_name(hz)}: the nearest is {best * 1e3:.4g} ms, nearly all "
            "weights gone"
        )
    if model.seconds(hz, at_density(loads, 1.0 - at_least, group)) <= deadline:
        return at_least
    while high - low > 1e-10:
        middle = (low + high) / 2
        if model.seconds(hz, at_density(loads, 1.0 - middle, group)) <= deadline:
            high = middle
        else:
            low = middle
    return max(at_least, high)


def language_model_loads(vocabulary: int, features: int, feedforward: int, layers: int) -> tuple[MatrixLoad, ...]:
    """Return the ten matrices of RT3's language model (``transformer_lm``), counted as its public code does."""
    per_column: Sequence[tuple[int, int]] = (
        (vocabulary, features),
        *((3 * features, features), (features, features)) * layers,
    )
    per_row: Sequence[tuple[int, int]] = (
        (vocabulary, features),
        *((feedforward, features), (features, feedforward)) * layers,
    )
    return (
        *(MatrixLoad(rows, cols, saved_adds=cols) for rows, cols in per_column),
        *(MatrixLoad(rows, cols, saved_adds=rows) for rows, cols in per_row),
    )
