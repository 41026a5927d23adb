"""What the passes of one variant know besides the module."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, Self

import numpy as np

from rt3_tvm.pattern import SparseMatrix
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import REAL, ElementType
from rt3_tvm.schedules.linear_decisions import LinearPacking
from rt3_tvm.schedules.linear_plan import LinearPlan, PlanKey

WEIGHTS_ATTR = "rt3.weights"
"""Attribute of the lowered ``main``: what its parameters behind the inputs hold, in their order: printing changes names."""

Kind = Literal["raw", "values", "offsets", "bias", "scales", "starts", "factors", "table"]
INT8_FACTS = ("dot", "smoothed", "form")
"""Fields of a reference that only int8 has, and that are no attributes where they are empty."""
ATTENTION = "attention"
"""What attention is called where weights are left in float32 by their names: it has none of its own."""
QUADS = "quads"
UNPRUNED = -1
"""Level of a weight that no level masks."""


@dataclass(frozen=True)
class WeightRef:
    """What a parameter of ``main`` holds: a weight as it is, or a part of a packed linear layer.

    Equal references are stored once, whatever level or length uses them. ``transposed``: the model stores (cols, rows).
    Without ``packing`` the values and offsets are those of a table whose rows are looked up. ``element``: the name of what the
    layer multiplies; ``dot``: the instruction, of int8. ``smoothed``: the weight by whose calibration the features are smoothed
    that the layer reads; empty without. ``form``: QUADS where its columns are multiplied in fours, empty else.
    """

    kind: Kind
    weight: str
    bias: str = ""
    level: int = UNPRUNED
    packing: LinearPacking | None = None
    dense: bool = False
    transposed: bool = False
    element: str = REAL.dtype
    dot: str = ""
    smoothed: str = ""
    form: str = ""

    @property
    def name(self) -> str:
        """The parameter's name: another one for whatever differs in what it holds."""
        kind = "" if self.kind == "raw" else f".{self.kind}"
        bias = f".{self.bias}" if self.kind == "bias" and self.bias else ""
        packing = f".{self.packing}" if self.packing is not None else ""
        element = f".{ElementType.of(self.element).short}{self.dot}{self.form}" if self.element != REAL.dtype else ""
        smoothed = f".by.{self.smoothed}" if self.smoothed else ""
        dense = ".dense" if self.dense and self.level != UNPRUNED else ""
        suffix = f".level{self.level}" if self.level != UNPRUNED else ""
        return f"{self.weight}{kind}{bias}{packing}{element}{smoothed}{dense}{suffix}"

    def to_attrs(self) -> dict[str, Any]:
        """Return the reference as an attribute of a function: texts, numbers and a list, empty without a packing."""
        facts = self.__dict__ | {"packing": list(self.packing.__dict__.values()) if self.packing is not None else []}
        return {name: fact for name, fact in facts.items() if name not in INT8_FACTS or fact}

    @classmethod
    def of(cls, attrs: Any) -> Self:
        """Return the reference that :meth:`to_attrs` wrote."""
        packing = [int(number) for number in attrs["packing"]]
        kind: Any = str(attrs["kind"])
        return cls(
            kind,
            str(attrs["weight"]),
            str(attrs["bias"]),
            int(attrs["level"]),
            LinearPacking(*packing) if packing else None,
            bool(attrs["dense"]),
            bool(attrs["transposed"]),
            str(attrs["element"]),
            *(str(attrs[name]) if name in attrs else "" for name in INT8_FACTS),
        )


def references_of(attrs: Any) -> list[WeightRef]:
    """Return what the parameters of a lowered ``main`` behind its inputs hold, in order."""
    return [WeightRef.of(ref) for ref in attrs[WEIGHTS_ATTR]]


@dataclass(frozen=True, eq=False)
class VariantContext:
    """One level at one length.

    Parameters
    ----------
    parameters
        Weight names by the parameter names of the imported ``main``.
    matrices
        The level's sparse matrices by weight name.
    element
        What its linear layers multiply, where that is faster.
    keep_float
        Globs of the names of weights, or of ATTENTION, that are multiplied in float32 all the same.
    tuned
        Plans that were measured; what has none gets the model's.
    calibration
        Of weights by name, the largest magnitude of each feature that their layers read, (cols,).
    """

    level: int
    batch: int
    length: int
    cpu: CpuShape
    parameters: dict[str, str]
    matrices: dict[str, SparseMatrix]
    element: ElementType = REAL
    keep_float: tuple[str, ...] = ()
    tuned: Mapping[PlanKey, LinearPlan] = field(default_factory=dict)
    calibration: Mapping[str, np.ndarray] = field(default_factory=dict)

    def element_of(self, name: str) -> ElementType:
        """Return what is asked for of the layer of a weight, or of ATTENTION."""
        kept = any(fnmatchcase(name, glob) for glob in self.keep_float)
        return REAL if kept else self.element

    def table_of(self, name: str) -> str:
        """Return the first matrix whose columns are in the same order as those of another, empty where that has none."""
        table = self.matrices[name].backbone.table if name in self.matrices else None
        if table is None:
            return ""
        others = ((n, m.backbone.table) for n, m in self.matrices.items())
        return next(n for n, other in others if other is not None and np.array_equal(other, table))

    def raw(self, name: str) -> WeightRef:
        """Return the reference to a weight as it is, masked where this level prunes it."""
        return WeightRef("raw", name, level=self.level if name in self.matrices else UNPRUNED)
