"""What was measured of plans on a core, as records of a log, and which plan of a matrix they speak for.

A record is one plan for one matrix and number of tokens, one JSON object a line. Fields stand under their names, so that a log
can be read when plans have got more of them. ``rt3_tvm/tune`` writes records; the compiler reads them here, and
:func:`choose_plans` alone decides which plan they speak for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import tvm

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.int8_lines import Quantised
from rt3_tvm.schedules.layout import REAL, ElementType, FeatureMajor
from rt3_tvm.schedules.linear_decisions import LinearDecisions, LinearPacking, MatrixShape
from rt3_tvm.schedules.linear_plan import MEASURED, TUNED, LinearPlan, PlanKey, TokenCount, plan_from, plan_linear

FORMAT = 1
"""Version of a record."""

LINEAR_REVISION = 2
"""Revision of the kernels that multiply by a weight: raised whenever a plan gives other code than before, for then what was
measured of it no longer holds."""

LINEAR_TEXTS = "665008cb63f4b888"
"""Digest of their golden texts at that revision; a test holds the two together."""

GAIN, LOSS = 0.997, 1.005
"""Parts of the default's time: less than that is worth a change, more at any length is not taken for whatever else it gains."""

ERRORS = 2.0
"""Standard errors of its median within which a ratio is noise."""

DOUBT = 1.015
"""Part of the default's time that a plan is known to stay below when its packing is taken."""

QUARTILES = 0.93
"""Standard error of the median of one normal number, in distances of its quartiles."""

FINAL, TRIAL = "final", "trial"
"""Stages of a record: measured once more, long and beside the default, so that it decides; or only tried."""


def versions() -> dict[str, Any]:
    """Return the versions on which the time of a plan depends."""
    return {"tvm": tvm.__version__, "kernels": LINEAR_REVISION}


@dataclass(frozen=True)
class CoreId:
    """What must be equal for times to be of use: LLVM's name of a core, bytes and number of its vector registers."""

    core: str
    vector_bytes: int
    registers: int

    @classmethod
    def of(cls, core: str, cpu: CpuShape) -> Self:
        """Return the identity of a core of a shape."""
        return cls(core, cpu.vector_bytes, cpu.registers)


@dataclass(frozen=True)
class LinearTask:
    """What a plan is looked for: a matrix, tokens, the element type that it is planned in, threads of a run."""

    matrix: MatrixShape
    tokens: TokenCount
    element: ElementType = REAL
    threads: int = 1

    @property
    def key(self) -> PlanKey:
        """Under which the compiler looks for a plan."""
        return self.matrix, self.tokens, self.element

    def to_json(self) -> dict[str, Any]:
        """Return the task as it stands in a record."""
        sizes = asdict(self.matrix) | asdict(self.tokens)
        if not self.matrix.quads:
            del sizes["quads"]  # as in records of before there were any
        return sizes | {"element": self.element.dtype, "threads": self.threads}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Return the task that :meth:`to_json` wrote."""
        rows, cols, kept, group = (int(data[k]) for k in ("rows", "cols", "kept", "group"))
        matrix = MatrixShape(rows, cols, kept, group, bool(data.get("quads", False)))
        tokens = TokenCount(int(data["batch"]), int(data["length"]))
        return cls(matrix, tokens, ElementType.of(data["element"]), int(data["threads"]))


def plan_to_json(plan: LinearPlan) -> dict[str, Any]:
    """Return a plan as it stands in a record, every number under its name."""
    parts = [
        {"first": p.shape.first, "tiles": p.shape.tiles} | (asdict(p.decisions) if p.decisions else {})
        for p in plan.parts
    ]
    return {
        "family": plan.family,
        "dense": plan.matrix.dense,
        "layout": asdict(plan.layout) | {"element": plan.layout.element.dtype},
        "packing": asdict(plan.packing),
        "parts": parts,
    } | ({"quantised": plan.quantised.facts} if plan.quantised else {})


def plan_of_json(data: Mapping[str, Any], task: LinearTask, source: str = TUNED) -> LinearPlan:
    """Return the plan that :func:`plan_to_json` wrote for a task."""
    matrix = MatrixShape.dense_of(task.matrix.rows, task.matrix.cols) if data["dense"] else task.matrix
    parts = []
    for row in data["parts"]:
        decisions = {k: v for k, v in row.items() if k not in ("first", "tiles")}
        parts.append((int(row["first"]), int(row["tiles"]), LinearDecisions(**decisions) if decisions else None))
    packing = LinearPacking(**data["packing"])
    layout = FeatureMajor(**data["layout"] | {"element": ElementType.of(data["layout"]["element"])})
    read = Quantised.of(data["quantised"]) if "quantised" in data else None
    return plan_from(str(data["family"]), matrix, task.tokens, layout, packing, parts, task.element, source, read)


@dataclass(frozen=True)
class Record:
    """One plan as it was measured.

    Parameters
    ----------
    stage
        FINAL or TRIAL.
    seconds, spread
        Median of a call over rounds, and the least and the largest; None for a plan that failed.
    ratio
        Quartiles of its time over that of ``against``, the plan that would be taken untuned, in the same round.
    device, versions
        Name, core, clock and whether it was held, what else is known of the device; versions that times depend on.
    error
        Why there is no time.
    """

    stage: str
    task: LinearTask
    plan: dict[str, Any]
    core: CoreId
    seconds: float | None = None
    spread: tuple[float, float] | None = None
    ratio: tuple[float, float, float] | None = None
    rounds: int = 0
    against: dict[str, Any] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=versions)
    error: str = ""

    @property
    def current(self) -> bool:
        """Whether it is of the kernels and the TVM that this package builds with."""
        return self.versions == versions()

    def to_json(self) -> dict[str, Any]:
        """Return the record as a line of a log has it."""
        data = {"rt3_tuning": FORMAT} | asdict(self) | {"task": self.task.to_json()}
        return {key: value for key, value in data.items() if value not in ("", None, {})}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Return the record of a line; KeyError, TypeError or ValueError where it is none."""
        if data["rt3_tuning"] != FORMAT:
            raise ValueError(f"version {data['rt3_tuning']} of the format, {FORMAT} is known")
        values = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        values |= {key: tuple(values[key]) for key in ("spread", "ratio") if key in values}
        core = {key: data["core"][key] for key in CoreId.__dataclass_fields__}
        record = cls(**values | {"task": LinearTask.of(data["task"]), "core": CoreId(**core)})
        plan_of_json(record.plan, record.task)
        return record

    @property
    def text(self) -> str:
        """Of the plan: equal for equal plans."""
        return plan_text(self.plan)


def plan_text(plan: Mapping[str, Any]) -> str:
    """Return a plan of a record as a text that is equal for equal plans."""
    parts = ";".join(",".join(f"{k}={v}" for k, v in sorted(part.items())) for part in plan["parts"])
    packing, layout = (",".join(f"{k}={v}" for k, v in sorted(plan[name].items())) for name in ("packing", "layout"))
    read = "".join(f" {fact}" for fact in plan.get("quantised", ()))
    return f"{plan['family']} {'dense' if plan['dense'] else 'sparse'} {layout} {packing} {parts}{read}"


Needs = Mapping[tuple[MatrixShape, ElementType], Iterable[TokenCount]]
"""For each matrix and what it is planned in, the numbers of tokens that it serves: its packing is shared by all of them."""


def choose_plans(
    records: Iterable[Record], core: CoreId, cpu: CpuShape, needs: Needs, threads: int
) -> dict[PlanKey, LinearPlan]:
    """Return the plans that current records of a core speak for, for the matrices that are needed.

    Records speak where they were measured against the plans that would be taken untuned today. A packing that differs from the
    default is taken only if it was measured at every number of tokens, lost at none of them and gained at one. At each of them
    the fastest plan with the packing is taken.
    """
    measured: dict[PlanKey, list[Record]] = {}
    for r in records:
        if r.stage == FINAL and r.current and r.core == core and r.task.threads == threads and r.ratio is not None:
            measured.setdefault(r.task.key, []).append(r)
    plans: dict[PlanKey, LinearPlan] = {}
    for (matrix, element), tokens in needs.items():
        keys: list[PlanKey] = [(matrix, t, element) for t in tokens]
        defaults = {key: plan_linear(cpu, *key) for key in keys}
        today = {key: plan_text(plan_to_json(plan)) for key, plan in defaults.items()}
        own = {key: [r for r in measured.get(key, ()) if plan_text(r.against) == today[key]] for key in keys}
        known = {key: _by_packing(found) for key, found in own.items() if found}
        if known:
            plans |= _choose(known, defaults[keys[0]].packing, whole=len(known) == len(keys))
    return plans


def _by_packing(records: list[Record]) -> dict[str, Record]:
    """Return the best record of each packing: of equal plans, the one that says most."""
    by_plan: dict[str, Record] = {}
    for r in records:
        if r.text not in by_plan or r.rounds >= by_plan[r.text].rounds:
            by_plan[r.text] = r
    best: dict[str, Record] = {}
    for r in by_plan.values():
        name = form_of(r.plan)
        if name not in best or _rank(r) < _rank(best[name]):
            best[name] = r
    return best


def form_of(plan: Mapping[str, Any]) -> str:
    """Return the name of what all lengths share: the packing, and whether it is that of the dense matrix."""
    return f"{'dense' if plan['dense'] else 'sparse'} {LinearPacking(**plan['packing'])}"


def _judged(record: Record) -> float:
    """Return the part of the default's time that a plan takes; 1 where the difference is within the noise.

    What might be as much slower as ``DOUBT`` is taken to be.
    """
    assert record.ratio is not None
    low, middle, high = record.ratio
    noise = ERRORS * QUARTILES * (high - low) / max(1, record.rounds) ** 0.5
    if middle + noise > DOUBT:
        return middle + noise
    return middle if middle + noise < GAIN or middle - noise > 1.0 else 1.0


def _rank(record: Record) -> tuple[float, bool]:
    """Return what orders plans from the best: of equal ones the untuned first."""
    return _judged(record), record.text != plan_text(record.against)


def _choose(known: dict[PlanKey, dict[str, Record]], default: LinearPacking, whole: bool) -> dict[PlanKey, LinearPlan]:
    """Return the plans of one matrix, by the records of each packing at each number of tokens."""
    shared = set.intersection(*(set(by_form) for by_form in known.values()))
    first = {key: form_of(next(iter(by_form.values())).against) for key, by_form in known.items()}
    allowed = [form for form in sorted(shared) if whole or form.endswith(f" {default}")]

    def cost(form: str) -> float:
        judged = [_judged(by_form[form]) for by_form in known.values()]
        return float("inf") if max(judged) > LOSS else sum(judged)

    best = min(allowed, key=lambda form: (cost(form), form not in first.values()), default=None)
    if best is None or cost(best) == float("inf"):
        return {}
    return {key: _plan(by_form[best]) for key, by_form in known.items()}


def _plan(record: Record) -> LinearPlan:
    """Return the plan of a record, and whether it is another one than the untuned."""
    same = record.text == plan_text(record.against)
    return plan_of_json(record.plan, record.task, MEASURED if same else TUNED)
