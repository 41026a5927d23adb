"""What kernels of int8 share: what fixes one, its buffers, and how four kept columns of some tokens come beside each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from rt3_tvm.schedules.cpu import STACK_BYTES, CpuShape
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS, DotProduct
from rt3_tvm.schedules.int8_lines import COLUMNS, PARTS, Lines, Quantised
from rt3_tvm.schedules.layout import FEATURE_MAJOR, REAL
from rt3_tvm.schedules.linear_decisions import LinearDecisions, LinearPacking, LinearShape
from rt3_tvm.schedules.packing import OFFSET_UNIT
from rt3_tvm.schedules.tasks import BY_LANE_ATTR

Zip = Callable[[Sequence[tirx.Expr], int], Sequence[tirx.Expr]]
"""From four lines and a part to what is beside each other of it, in one piece or several."""


@dataclass(frozen=True)
class Int8Kernel:
    """What fixes a kernel.

    A register block is ``packing.rows`` rows times ``decisions.vectors`` vectors of tokens: a part of a line, so that the kernel
    passes over a line several times, or whole lines.
    """

    shape: LinearShape
    packing: LinearPacking
    decisions: LinearDecisions
    read: Quantised
    activation: str

    @property
    def dot(self) -> DotProduct:
        """What it multiplies by."""
        return DOT_PRODUCTS[self.read.dot]

    @property
    def lines(self) -> Lines:
        """How activations lie."""
        return self.read.lines

    @property
    def parts(self) -> list[int]:
        """Which vectors of a line hold tokens."""
        return self.lines.parts(self.shape.tiles, self.read.served)

    @property
    def rest(self) -> list[int]:
        """Which vectors of its tiles hold none: zeros."""
        return [part for part in self.lines.parts(self.shape.tiles, FEATURE_MAJOR.token_tile) if part not in self.parts]

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return self.shape.tiles * self.read.served

    @property
    def block_lines(self) -> int:
        """Lines of a register block."""
        return max(1, self.decisions.vectors // PARTS)

    @property
    def passes(self) -> list[list[tuple[int, int]]]:
        """For each pass the line and the part of each vector of its register block."""
        step = self.decisions.vectors
        return [self.block[first : first + step] for first in range(0, len(self.block), step)]

    @property
    def block(self) -> list[tuple[int, int]]:
        """The line and the part of each vector of the lines of a register block."""
        return [(line, part) for line in range(self.block_lines) for part in self.parts]

    @property
    def zips(self) -> bool:
        """Whether columns are any, and have to be zipped; quads lie beside each other."""
        return not self.shape.quads

    @property
    def offsets_of_four(self) -> int:
        """Offsets of four kept columns: one for each, or one of a quad."""
        return COLUMNS if self.zips else 1

    @property
    def listed(self) -> int:
        """Offsets of a group's list of columns."""
        return self.shape.kept // COLUMNS * self.offsets_of_four

    @property
    def zips_once(self) -> bool:
        """Whether lines are zipped once for all rows: where those keep the same columns, and what comes out stays close."""
        return (
            self.zips
            and self.shape.dense
            and self.shape.kept // COLUMNS * len(self.block) * self.lines.tokens <= STACK_BYTES
        )

    @property
    def sums(self) -> int:
        """How often sums of int32 grow: columns over those that an instruction, or two with sums of int16, multiply by."""
        return self.shape.kept // (COLUMNS * self.dot.quads)

    @property
    def looks_up(self) -> bool:
        """Whether columns come from a table; dense whole steps are simply one after the other."""
        return not self.shape.dense or self.shape.kept != self.shape.cols


@dataclass(frozen=True, eq=False)
class Buffers:
    """Of one kernel, and of its registers."""

    x: tirx.Buffer
    values: tirx.Buffer
    offsets: tirx.Buffer
    starts: tirx.Buffer
    lines: tirx.Buffer
    quads: tirx.Buffer
    acc: tirx.Buffer


def vector_of(buffer: tirx.Buffer, *indices: Any, lanes: int) -> tirx.Expr:
    """Return a vector of a buffer that begins at an index."""
    return tirx.BufferLoad(buffer, [*indices[:-1], tirx.Ramp(indices[-1], 1, lanes)])


def store(buffer: tirx.Buffer, value: tirx.Expr, *indices: Any) -> None:
    """Emit the store of a vector that begins at an index."""
    T.buffer_store(buffer, value, [*indices[:-1], tirx.Ramp(indices[-1], 1, int(value.ty.dtype.lanes))])


def begin_lines(k: Int8Kernel, b: Buffers, line: Any, zip_part: Zip) -> None:
    """Emit the zips of all columns of the lines of a register block, where they are made once."""
    if k.zips_once:
        with T.serial(k.shape.kept // COLUMNS) as q:
            zip_lines(k, b, (line, 0, q), k.block, q, zip_part)


def bring_quads(
    k: Int8Kernel, b: Buffers, at: tuple[Any, Any, Any], vectors: list[tuple[int, int]], to: Any, zip_part: Zip
) -> None:
    """Emit what brings four columns of some vectors beside each other: ``at`` is the line, the table and which four."""
    if k.zips:
        zip_lines(k, b, at, vectors, to, zip_part)
    else:
        load_quads(k, b, at, vectors, to)


def load_quads(k: Int8Kernel, b: Buffers, at: tuple[Any, Any, Any], vectors: list[tuple[int, int]], to: Any) -> None:
    """Emit the loads of some vectors of a quad."""
    (line, table, quad), width = at, k.lines.tokens
    found = _column(k, b, table, quad) if k.looks_up else quad * (COLUMNS * width)
    for v, (part_line, part) in enumerate(vectors):
        start = (line + part_line) * (k.shape.cols * width) + found + part * width
        store(b.quads, vector_of(b.x, start, lanes=width), to, v, 0)


def zip_lines(
    k: Int8Kernel, b: Buffers, at: tuple[Any, Any, Any], vectors: list[tuple[int, int]], to: Any, zip_part: Zip
) -> None:
    """Emit the loads of four lines, and the zips of some of their vectors: ``at`` is the line, the table and which four."""
    (line, table, four), width = at, k.lines.tokens
    for part_line in range(k.block_lines):
        base = (line + part_line) * (k.shape.cols * width)
        for c in range(COLUMNS):
            start = base + _column(k, b, table, four * COLUMNS + c)
            store(b.lines, vector_of(b.x, start, lanes=width), c, 0)
        loaded = [vector_of(b.lines, c, 0, lanes=width) for c in range(COLUMNS)]
        for v, part in ((v, part) for v, (at_line, part) in enumerate(vectors) if at_line == part_line):
            for i, piece in enumerate(pieces := zip_part(loaded, part)):
                store(b.quads, piece, to, v, i * (width // len(pieces)))


def _column(k: Int8Kernel, b: Buffers, table: Any, index: Any) -> Any:
    """Return where the line of a kept column begins among those of its tokens."""
    if not k.looks_up:
        return index * k.lines.tokens
    return T.Cast("int32", b.offsets[table, index]) * (k.lines.tokens // OFFSET_UNIT)


def clear_rest(k: Int8Kernel, y: tirx.Buffer, line: Any, row_block: Any) -> None:
    """Emit zeros in the vectors of a tile that hold no tokens."""
    lanes, tile, rows = k.lines.lanes, FEATURE_MAJOR.token_tile, k.packing.rows
    nothing = tirx.Broadcast(REAL.const(0.0), lanes)
    for part_line, part in ((i, part) for i in range(k.block_lines) for part in k.rest):
        first = (line + part_line) * k.lines.tokens + part * lanes
        for r in range(rows):
            store(y, nothing, T.floordiv(first, tile), row_block * rows + r, T.floormod(first, tile))


def for_core(func: tirx.PrimFunc, k: Int8Kernel, cpu: CpuShape, counted: bool = False) -> tirx.PrimFunc:
    """Return a kernel for a core: weights by lane where it multiplies so, loops ``counted`` that LLVM would unroll to the end."""
    if not cpu.by_lane:
        return func
    buffers = {"weights": ["values", "scales", "bias"], "pointers": ["X", "values", "offsets"]}
    near = k.lines.tokens * (1 if k.zips else PARTS)  # the vectors of a quad are loaded in pairs
    sizes = {"lanes": cpu.vector_bytes // COLUMNS, "line": near}
    return func.with_attr(BY_LANE_ATTR, buffers | sizes | {"fuse": False} | ({"counted": True} if counted else {}))
