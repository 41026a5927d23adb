"""What phase 3 says of a linear layer, as attributes of its function, and what phase 4 reads back."""

from dataclasses import dataclass
from typing import Any, Self

from rt3_tvm.pattern import SparseMatrix
from rt3_tvm.schedules.linear_plan import LinearPlan
from rt3_tvm.transform.context import UNPRUNED


@dataclass(frozen=True)
class Cut:
    """How a matrix was pruned: blocks and patterns as (rows, cols), the backbone's density, rows of a group, patterns.

    ``adjacent``: columns that are kept together.
    """

    block: tuple[int, int]
    block_density: float
    pattern_shape: tuple[int, int]
    group: int
    patterns: int
    adjacent: int = 1

    @classmethod
    def of(cls, matrix: SparseMatrix) -> Self:
        """Return how a matrix was pruned."""
        shape, backbone = matrix.patterns.shape, matrix.backbone
        return cls(
            (backbone.block_rows, backbone.shape[1]),
            backbone.density,
            (shape.rows, shape.cols),
            shape.group,
            len(matrix.patterns.columns),
            shape.adjacent,
        )


@dataclass(frozen=True)
class LinearAnnotation:
    """Which matrix a linear layer multiplies by, at which level, how much of it is kept, and the plan of its kernels.

    ``cut`` is for who reads a dumped module: the lowering needs none of it.
    """

    matrix: str
    plan: LinearPlan
    level: int = UNPRUNED
    density: float = 1.0
    cut: Cut | None = None

    def to_attrs(self) -> dict[str, Any]:
        """Return the attributes of the function."""
        attrs = {
            "rt3.matrix": self.matrix,
            "rt3.level": self.level,
            "rt3.density": self.density,
            "rt3.kernel": str(self.plan),
            "rt3.plan": self.plan.to_attrs(),
        }
        if self.cut is not None:
            attrs |= {
                "rt3.block": list(self.cut.block),
                "rt3.block_density": self.cut.block_density,
                "rt3.pattern_shape": list(self.cut.pattern_shape),
                "rt3.group": self.cut.group,
                "rt3.patterns": self.cut.patterns,
            } | ({"rt3.adjacent": self.cut.adjacent} if self.cut.adjacent > 1 else {})
        return attrs

    @classmethod
    def of(cls, attrs: Any) -> Self | None:
        """Return what :meth:`to_attrs` wrote, without ``cut``; None where the function is no layer of the model."""
        if attrs is None or "rt3.plan" not in attrs:
            return None
        plan = LinearPlan.of(attrs["rt3.plan"])
        return cls(str(attrs["rt3.matrix"]), plan, int(attrs["rt3.level"]), float(attrs["rt3.density"]))
