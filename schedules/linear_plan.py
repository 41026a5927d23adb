"""The plan of a linear layer: all that is chosen for it, decided in one place and written down as one value.

The annotation, the lowering, the benchmarks and the tests ask :func:`plan_linear`; nobody else chooses. A plan can be read
back from the attributes of a function, so that a dumped module says which kernels it will get.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tvm import tirx

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.few_tokens import few_token_linear, few_tokens
from rt3_tvm.schedules.few_tokens_int8 import few_int8_kernel
from rt3_tvm.schedules.int8_blocks import Int8Kernel
from rt3_tvm.schedules.int8_linear import int8_kernel
from rt3_tvm.schedules.int8_lines import COLUMNS, SERVED_ATTR, Quantised
from rt3_tvm.schedules.int8_packing import int8_kept
from rt3_tvm.schedules.int8_plan import (
    best_int8_cycles,
    choose_int8_decisions,
    choose_int8_packing,
    few_kernel,
    few_pays,
    quantise_cycles,
    quantised_for,
    split_lines,
    takes_quads,
)
from rt3_tvm.schedules.layout import FEATURE_MAJOR, FLOAT16, FLOAT32, INT8, REAL, ElementType, FeatureMajor
from rt3_tvm.schedules.linear_decisions import (
    TYPICAL_TOKENS,
    LinearDecisions,
    LinearPacking,
    LinearShape,
    MatrixShape,
    best_cycles,
    choose_decisions,
    choose_packing,
    conversion_cycles,
    padded_kept,
    sparse_pays,
    split_tiles,
)
from rt3_tvm.schedules.packing import offset_dtype
from rt3_tvm.schedules.pattern_linear import linear_algorithm
from rt3_tvm.schedules.tasks import BY_LANE_ATTR, by_lane

WIDE_TILE = 32
"""Tokens of a tile of float16: a line of X is a cache line then, and one address serves four vectors."""

NAME_ATTR = "rt3.name"
"""PrimFunc attribute that says what its symbol is to be called: the text of its plan."""

ACTIVATION_ATTR = "rt3.activation"
"""PrimFunc attribute of a kernel that multiplies quantised activations: its activation, for whoever computes the same."""

SOURCE_ATTR = "rt3.plan_source"
"""PrimFunc attribute that says where its plan is from, if not from the model of the core."""

MODELLED, MEASURED, TUNED = "modelled", "measured", "tuned"
"""Where a plan is from: the model of the core alone; the same, and no plan that was tried is faster; a faster one."""


@dataclass(frozen=True)
class TokenCount:
    """How many sequences of which length a call serves."""

    batch: int
    length: int

    def tiles(self, layout: FeatureMajor = FEATURE_MAJOR) -> int:
        """Return the token tiles, each sequence padded to whole ones."""
        return self.batch * layout.tiles(self.length)


@dataclass(frozen=True)
class LinearPart:
    """The kernel of some token tiles; without decisions that for a handful of tokens, which has none to make."""

    shape: LinearShape
    decisions: LinearDecisions | None = None


@dataclass(frozen=True)
class LinearPlan:
    """How one linear layer is computed.

    Parameters
    ----------
    family
        Row of SCHEDULES.
    layout
        Of the activations that it reads, or that are quantised for it; the result is in the real layout.
    matrix
        What the kernel multiplies by: dense where that is not slower than the patterns.
    parts
        One kernel or two, each for some of the token tiles; they share the packed weights.
    element
        What the matrix was planned in, and what its values are stored as. Where a kernel reads real activations all the same it
        widens the values.
    source
        MODELLED, MEASURED or TUNED.
    quantised
        How the activations lie that it reads, where those are int8.
    """

    family: str
    layout: FeatureMajor
    matrix: MatrixShape
    tokens: TokenCount
    packing: LinearPacking
    parts: tuple[LinearPart, ...]
    element: ElementType = REAL
    source: str = field(default=MODELLED, compare=False)
    quantised: Quantised | None = None

    @property
    def tiles(self) -> int:
        """Token tiles of its input."""
        return self.tokens.tiles(self.layout)

    @property
    def multiplied(self) -> ElementType:
        """What its kernels multiply: that of the activations that they read."""
        return INT8 if self.quantised is not None else self.layout.element

    @property
    def served(self) -> int:
        """Tokens of each tile that are computed; the others become zeros."""
        if self.parts[0].decisions is None:
            return self.tokens.length
        return self.quantised.served if self.quantised is not None else self.layout.token_tile

    @property
    def value_shape(self) -> tuple[int, int, int, int]:
        """Shape of the packed values: (column blocks, row blocks, columns of a block, rows of a block)."""
        blocks = self.packing.column_blocks
        kept = self.parts[0].shape.kept // blocks
        return blocks, self.matrix.rows // self.packing.rows, kept, self.packing.rows

    @property
    def offset_shape(self) -> tuple[int, int, int]:
        """Shape of the table of columns: (column blocks, groups, columns of a block)."""
        return self.value_shape[0], self.matrix.rows // self.matrix.group, self.value_shape[2]

    @property
    def offset_dtype(self) -> str:
        """Type of the table of columns."""
        return self.parts[0].shape.offset_dtype

    @property
    def weights(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of what is packed of the weight, by name, in the order in which the kernel takes it behind X."""
        blocks = self.matrix.rows // self.packing.rows, self.packing.rows
        if self.quantised is None:
            return {
                "values": (self.value_shape, self.element.dtype),
                "offsets": (self.offset_shape, self.offset_dtype),
                "bias": (blocks, REAL.dtype),
            }
        kept = self.parts[0].shape.kept
        listed = kept // (COLUMNS if self.quantised.lines.quads else 1)
        return {
            "values": ((blocks[0], kept // COLUMNS, self.packing.rows), "int32"),
            "offsets": ((self.matrix.rows // self.matrix.group, listed), self.offset_dtype),
            "bias": (blocks, REAL.dtype),
            "scales": (blocks, REAL.dtype),
            "starts": (blocks, "int32"),
        }

    def name(self, part: LinearPart) -> str:
        """Return what the kernel of a part is called, as in ``pattern_linear_f32_v4_r4x4_t64_k96``.

        V rows keep the same columns (with a q behind V in quads), a register block has r rows by vectors, the kernel serves t
        tokens, a group keeps k columns.
        """
        group = "" if self.matrix.dense else f"_v{self.matrix.group}{'q' if self.matrix.quads else ''}"
        block = f"{self.packing.rows}x{part.decisions.vectors}" if part.decisions else str(self.packing.rows)
        tokens = part.shape.tiles * self.served
        return f"{self.family.removesuffix('_int8')}_{self.element.short}{group}_r{block}_t{tokens}_k{self.matrix.kept}"

    def __str__(self) -> str:
        return "+".join(map(self.name, self.parts))

    def kernel(self, part: LinearPart, activation: str, cpu: CpuShape) -> tirx.PrimFunc:
        """Return the kernel of a part, not yet scheduled; that of the second part fills in the result of the first."""
        if self.quantised is not None:
            marks = {ACTIVATION_ATTR: activation, SERVED_ATTR: self.served}
            func = self._int8_kernel(part, activation, cpu).with_attrs(marks)
        elif part.decisions is None:
            func = few_token_linear(part.shape, self.packing, self.tokens.length, activation, self.element, cpu.unit)
        else:
            lanes = cpu.lanes(self.element)
            func = linear_algorithm(part.shape, self.packing, part.decisions, lanes, activation, cpu.unit)
            if cpu.by_lane:
                marks = by_lane(cpu, self.layout, ["values"], ["X", "values", "offsets"])
                func = func.with_attr(BY_LANE_ATTR, marks)
        if self.source != MODELLED:
            func = func.with_attr(SOURCE_ATTR, self.source)
        return func.with_attr(NAME_ATTR, self.name(part))

    def int8(self, part: LinearPart, activation: str) -> Int8Kernel:
        """Return what fixes the kernel of a part that reads quantised activations."""
        assert self.quantised is not None and part.decisions is not None
        return Int8Kernel(part.shape, self.packing, part.decisions, self.quantised, activation)

    def _int8_kernel(self, part: LinearPart, activation: str, cpu: CpuShape) -> tirx.PrimFunc:
        if part.decisions is not None:
            return int8_kernel(self.int8(part, activation), cpu)
        few = few_kernel(cpu, part.shape, self.packing, self.tokens.length, activation)
        assert few is not None, "it was planned"
        return few_int8_kernel(few, cpu)

    def flops(self, part: LinearPart) -> float:
        """Return the operations of a part: of columns that are kept, on tokens that pad a tile too."""
        return 2.0 * self.matrix.rows * self.matrix.kept * part.shape.tiles * self.served

    def to_attrs(self) -> dict[str, Any]:
        """Return the plan as attributes of a function: texts, numbers and lists of them."""
        return {
            "family": self.family,
            "element": self.element.dtype,
            "layout": [self.layout.element.dtype, self.layout.token_tile, self.layout.interleave],
            "matrix": [*map(int, self.matrix.__dict__.values())],
            "tokens": list(self.tokens.__dict__.values()),
            "packing": list(self.packing.__dict__.values()),
            "parts": [
                [p.shape.first, p.shape.tiles, *(p.decisions.__dict__.values() if p.decisions else ())]
                for p in self.parts
            ],
        } | self._marks()

    def _marks(self) -> dict[str, Any]:
        """Return the attributes that not every plan has."""
        marks: dict[str, Any] = {"source": self.source} if self.source != MODELLED else {}
        read = self.quantised
        return marks if read is None else marks | {"quantised": read.facts}

    @classmethod
    def of(cls, attrs: Any) -> "LinearPlan":
        """Return the plan that :meth:`to_attrs` wrote."""
        rows, cols, kept, group, quads = map(int, attrs["matrix"])
        matrix, tokens = MatrixShape(rows, cols, kept, group, bool(quads)), TokenCount(*map(int, attrs["tokens"]))
        packing = LinearPacking(*map(int, attrs["packing"]))
        dtype, *sizes = attrs["layout"]
        layout = FeatureMajor(ElementType.of(dtype), *map(int, sizes))
        parts = []
        for first, tiles, *decisions in (list(map(int, row)) for row in attrs["parts"]):
            parts.append((first, tiles, LinearDecisions(*decisions) if decisions else None))
        element, source = ElementType.of(attrs["element"]), str(attrs["source"]) if "source" in attrs else MODELLED
        read = Quantised.of(attrs["quantised"]) if "quantised" in attrs else None
        return plan_from(str(attrs["family"]), matrix, tokens, layout, packing, parts, element, source, read)


PlanKey = tuple[MatrixShape, TokenCount, ElementType]
"""What a plan is chosen for: the element type is the one that the matrix is planned in."""


def plan_from(
    family: str,
    matrix: MatrixShape,
    tokens: TokenCount,
    layout: FeatureMajor,
    packing: LinearPacking,
    parts: Iterable[tuple[int, int, LinearDecisions | None]],
    element: ElementType = REAL,
    source: str = MODELLED,
    quantised: Quantised | None = None,
) -> LinearPlan:
    """Return a plan of which all is decided; ``parts`` as (first tile, tiles, decisions)."""
    whole = whole_shape(matrix, tokens, packing, layout, quantised)
    made = tuple(LinearPart(_part(whole, first, tiles), decisions) for first, tiles, decisions in parts)
    return LinearPlan(family, layout, matrix, tokens, packing, made, element, source, quantised)


def whole_shape(
    matrix: MatrixShape,
    tokens: TokenCount,
    packing: LinearPacking,
    layout: FeatureMajor,
    quantised: Quantised | None = None,
) -> LinearShape:
    """Return the sizes of a packed matrix for all of its tokens."""
    padded = padded_kept(matrix.kept, packing)
    kept = padded if quantised is None else int8_kept(matrix.kept, DOT_PRODUCTS[quantised.dot], packing)
    tiles, offsets = tokens.tiles(layout), offset_dtype(matrix.cols)
    return LinearShape(tiles, matrix.rows, matrix.cols, kept, matrix.group, offsets, layout=layout, quads=matrix.quads)


def _part(whole: LinearShape, first: int, tiles: int) -> LinearShape:
    """Return the shape of some tiles; all of them is the whole."""
    return whole if tiles == whole.tiles else whole.part(first, tiles)


def layout_of(element: ElementType, tokens: TokenCount) -> FeatureMajor:
    """Return the layout that an element type is multiplied in: wide tiles of float16, but where they would pad more tokens."""
    if element is not FLOAT16:
        return FEATURE_MAJOR
    real, wide = FeatureMajor(element), FeatureMajor(element, WIDE_TILE)
    padded = tokens.tiles(wide) * wide.token_tile
    return wide if padded == tokens.tiles(real) * real.token_tile else real


@dataclass(frozen=True)
class Planner:
    """How linear layers are planned in one element type.

    ``cycles``: modelled for a matrix at the typical number of tokens, with what it takes to bring its activations into the
    layout; infinite where it cannot be done. They never rise where fewer columns are kept. ``plan``: the cheapest for a number
    of tokens; its packing is the same for all of them.
    """

    cycles: Callable[[CpuShape, MatrixShape], float]
    plan: Callable[[CpuShape, MatrixShape, TokenCount], LinearPlan]


def plan_linear(
    cpu: CpuShape,
    matrix: MatrixShape,
    tokens: TokenCount,
    element: ElementType = REAL,
    tuned: Mapping[PlanKey, LinearPlan] = MappingProxyType({}),
) -> LinearPlan:
    """Return the plan of a matrix for a number of tokens: one that was measured, else the cheapest that the model knows.

    ``element``: of the level.
    """
    chosen = planned_element(cpu, matrix, element)
    matrix = multiplied_as(cpu, matrix, chosen)
    return tuned.get((matrix, tokens, chosen)) or PLANNERS[chosen].plan(cpu, matrix, tokens)


def planned_element(cpu: CpuShape, matrix: MatrixShape, element: ElementType) -> ElementType:
    """Return what a matrix of a level of an element type is planned in: a wider type where that is not slower.

    The conversion of what the layer reads counts; that is decided for all numbers of tokens at once, so that weights are stored
    once.
    """
    wider = (e for e in cpu.elements if e.bytes > element.bytes)
    return min((*wider, element), key=lambda e: (PLANNERS[e].cycles(cpu, matrix), -e.bytes))


def multiplied_as(cpu: CpuShape, matrix: MatrixShape, element: ElementType) -> MatrixShape:
    """Return a matrix as its planner takes it: in quads where four columns are multiplied at once, else of any columns."""
    return matrix if element is INT8 and takes_quads(cpu) else matrix.single


def family_of(matrix: MatrixShape, element: ElementType) -> str:
    """Return the row of SCHEDULES that multiplies a matrix, where it is not for a handful of tokens."""
    kind = "dense" if matrix.dense else "quad" if matrix.quads else "pattern"
    return f"{kind}_linear{'_int8' if element is INT8 else ''}"


def _float_planner(element: ElementType) -> Planner:
    """Return how layers are planned whose kernels are those of float32 in another type."""
    typical = layout_of(element, TokenCount(1, TYPICAL_TOKENS))

    def sparse_or_dense(cpu: CpuShape, matrix: MatrixShape) -> MatrixShape:
        pays = matrix.dense or sparse_pays(cpu, matrix, typical)
        return matrix if pays else MatrixShape.dense_of(matrix.rows, matrix.cols)

    def cycles(cpu: CpuShape, matrix: MatrixShape) -> float:
        if element not in cpu.elements:
            return float("inf")
        return best_cycles(cpu, sparse_or_dense(cpu, matrix), typical) + conversion_cycles(cpu, matrix.cols, element)

    def plan(cpu: CpuShape, matrix: MatrixShape, tokens: TokenCount) -> LinearPlan:
        matrix = sparse_or_dense(cpu, matrix)
        packing, real = choose_packing(cpu, matrix, typical), layout_of(REAL, tokens)
        few = few_tokens(packing, whole_shape(matrix, tokens, packing, real), tokens.batch, tokens.length)
        family = "few_token_linear" if few else family_of(matrix, element)
        return plan_of_family(family, cpu, matrix, tokens, element, packing)

    return Planner(cycles, plan)


def _int8_planner() -> Planner:
    """Return how layers are planned that multiply quantised activations."""

    def sparse_or_dense(cpu: CpuShape, matrix: MatrixShape) -> MatrixShape:
        dense, matrix = MatrixShape.dense_of(matrix.rows, matrix.cols), multiplied_as(cpu, matrix, INT8)
        return matrix if best_int8_cycles(cpu, matrix) < best_int8_cycles(cpu, dense) else dense

    def cycles(cpu: CpuShape, matrix: MatrixShape) -> float:
        if INT8 not in cpu.elements:
            return float("inf")
        return best_int8_cycles(cpu, sparse_or_dense(cpu, matrix)) + quantise_cycles(cpu, matrix.cols)

    def plan(cpu: CpuShape, matrix: MatrixShape, tokens: TokenCount) -> LinearPlan:
        matrix = sparse_or_dense(cpu, matrix)
        packing = choose_int8_packing(cpu, matrix)
        read = quantised_for(cpu, tokens.length, tokens.batch, matrix.quads)
        whole = whole_shape(matrix, tokens, packing, FEATURE_MAJOR, read)
        few = few_pays(cpu, whole, packing, tokens.length, tokens.batch)
        family = "few_token_linear_int8" if few else family_of(matrix, INT8)
        return plan_of_family(family, cpu, matrix, tokens, INT8, packing)

    return Planner(cycles, plan)


PLANNERS = {element: _float_planner(element) for element in (FLOAT32, FLOAT16)} | {INT8: _int8_planner()}
"""By element type."""


def plan_of_family(
    family: str,
    cpu: CpuShape,
    matrix: MatrixShape,
    tokens: TokenCount,
    element: ElementType = REAL,
    packing: LinearPacking | None = None,
) -> LinearPlan:
    """Return the plan of a matrix with the kernel of a family, whether or not another one would be cheaper."""
    if element is INT8:
        return _int8_plan(family, cpu, matrix, tokens, packing or choose_int8_packing(cpu, matrix))
    layout = layout_of(element, tokens)
    packing = packing or choose_packing(cpu, matrix, layout_of(element, TokenCount(1, TYPICAL_TOKENS)))
    if family == "few_token_linear":
        real = layout_of(REAL, tokens)
        whole = LinearPart(whole_shape(matrix, tokens, packing, real))
        return LinearPlan(family, real, matrix, tokens, packing, (whole,), element)
    shape = whole_shape(matrix, tokens, packing, layout)
    parts = (LinearPart(p, choose_decisions(cpu, p, packing)) for p in split_tiles(cpu, shape, packing))
    return LinearPlan(family, layout, matrix, tokens, packing, tuple(parts), element)


def _int8_plan(
    family: str, cpu: CpuShape, matrix: MatrixShape, tokens: TokenCount, packing: LinearPacking
) -> LinearPlan:
    read = quantised_for(cpu, tokens.length, tokens.batch, matrix.quads)
    whole = whole_shape(matrix, tokens, packing, FEATURE_MAJOR, read)
    parts = [LinearPart(whole)]
    if family != "few_token_linear_int8":
        split = split_lines(read.lines, whole)
        parts = [LinearPart(part, choose_int8_decisions(cpu, part, packing, read)) for part in split]
    return LinearPlan(family, FEATURE_MAJOR, matrix, tokens, packing, tuple(parts), INT8, quantised=read)
