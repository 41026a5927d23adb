"""The instructions that multiply int8 and sum four products: one row for each kind of core.

TVM and LLVM find none of them in a loop nest, so that kernels of int8 are written in vectors, with what stands here. Vectors are
expressions; ``x`` is four columns of each of some tokens, beside each other, ``w`` the weights of those columns, repeated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import Expr

from rt3_tvm.schedules.int8_lines import COLUMNS, LANE_BYTES, Lines
from rt3_tvm.schedules.vector_math import ROUNDING

BITS_8, BITS_7 = 127, 63
"""Largest weight. Of 7 bits where products are summed in int16: 2 * 255 * 63 and 4 * 128 * 63 fit."""


@dataclass(frozen=True)
class DotProduct:
    """One kind of dot product.

    Parameters
    ----------
    largest
        Magnitude that weights are scaled to.
    unsigned
        Whether activations are x + 128, from 0 to 255.
    quads
        How many times four columns are summed before they reach an accumulator of int32.
    temporaries
        Registers that a sum takes on its way.
    pairs
        Whether x is pairs of columns instead of quads, and w two weights, repeated.
    accumulate
        From an accumulator and the x and w of as many quads, or their pairs, to the accumulator with their products.
    to_int
        From a vector of float32 to int32, rounded to nearest, ties to even.
    narrow
        From four vectors of int32 to one of int8, in the order of :class:`Lines`.
    beside
        From four vectors of int32, columns of the same tokens, to one of int8 in which those of a token are beside each other.
    """

    largest: int
    unsigned: bool
    quads: int
    temporaries: int
    pairs: bool
    accumulate: Callable[[Expr, Sequence[Expr], Sequence[Expr]], Expr]
    to_int: Callable[[Expr], Expr]
    narrow: Callable[[Sequence[Expr]], Expr]
    beside: Callable[[Sequence[Expr]], Expr]

    def lines(self, vector_bytes: int, quads: bool = False) -> Lines:
        """Return how activations lie for vectors of that size."""
        return Lines(vector_bytes, self.unsigned, quads)

    def zip(self, lines: Sequence[Expr], part: int) -> list[Expr]:
        """Return four columns of each token of one part of a line, as ``accumulate`` takes them: a quad, or two pairs."""
        return pairs(lines, part) if self.pairs else [quad(lines, part)]


def lanes_of(vector: Expr) -> int:
    """Return the lanes of a vector."""
    return int(vector.ty.dtype.lanes)


def intrinsic(dtype: str, name: str, *arguments: Expr) -> Expr:
    """Return a call of an instruction by LLVM's name."""
    return T.call_llvm_pure_intrin(dtype, name, *arguments)


def zipped(a: Expr, b: Expr, high: bool, element: str) -> Expr:
    """Return the low or high halves of each 16 bytes of two vectors of int8, their numbers in turn: vpunpck, or zip."""
    bits = int(element[3:])
    lanes, in_lane = lanes_of(a) * 8 // bits, LANE_BYTES * 8 // bits
    first = in_lane // 2 if high else 0
    order = [
        lane + first + i + source * lanes
        for lane in range(0, lanes, in_lane)
        for i in range(in_lane // 2)
        for source in (0, 1)
    ]
    wide = [tirx.reinterpret(f"{element}x{lanes}", v) if bits > 8 else v for v in (a, b)]
    mixed = tirx.Shuffle(wide, order)
    return tirx.reinterpret(f"int8x{lanes_of(a)}", mixed) if bits > 8 else mixed


def quad(lines: Sequence[Expr], part: int) -> Expr:
    """Return four columns of each token of one part of a line, beside each other."""
    assert len(lines) == COLUMNS
    pairs = [zipped(lines[i], lines[i + 1], part >= 2, "int8") for i in (0, 2)]
    return zipped(pairs[0], pairs[1], part % 2 == 1, "int16")


def repeated(word: Expr, bytes_: int) -> Expr:
    """Return four weights, of one row, repeated over a vector."""
    return tirx.reinterpret(f"int8x{bytes_}", tirx.Broadcast(word, bytes_ // 4))


def pairs(lines: Sequence[Expr], part: int) -> list[Expr]:
    """Return the first two columns of each token of one part of a line, beside each other, and the two others.

    By LLVM's own name for it: of a shuffle it would make one of 64 bits for each half, in a register of its own.
    """
    assert len(lines) == COLUMNS and lanes_of(lines[0]) == LANE_BYTES
    mixed = [intrinsic(f"int8x{2 * LANE_BYTES}", "llvm.vector.interleave2", lines[i], lines[i + 1]) for i in (0, 2)]
    half = LANE_BYTES // 2
    return [tirx.Shuffle([m], list(range(half * part, half * (part + 1)))) for m in mixed]


def pair_of(words: Expr, index: int) -> Expr:
    """Return one pair of a vector of weights, repeated."""
    lanes = 2 * lanes_of(words)
    return tirx.reinterpret("int8x8", tirx.Shuffle([tirx.reinterpret(f"int16x{lanes}", words)], [index] * 4))


def _sdot(acc: Expr, x: Sequence[Expr], w: Sequence[Expr]) -> Expr:
    return intrinsic("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", acc, x[0], w[0])


def _vpdpbusd(acc: Expr, x: Sequence[Expr], w: Sequence[Expr]) -> Expr:
    bits = lanes_of(x[0]) * 8
    return intrinsic(f"int32x{bits // 32}", f"llvm.x86.avx512.vpdpbusd.{bits}", acc, x[0], w[0])


_MADD = {16: ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd")}
_MADD[32] = ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd")
_MADD[64] = ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512")


def _vpmaddubsw(acc: Expr, x: Sequence[Expr], w: Sequence[Expr]) -> Expr:
    bytes_ = lanes_of(x[0])
    to_words, to_ints = _MADD[bytes_]
    words = intrinsic(f"int16x{bytes_ // 2}", to_words, x[0], w[0])
    ones = tirx.Broadcast(tirx.const(1, "int16"), bytes_ // 2)
    return acc + intrinsic(f"int32x{bytes_ // 4}", to_ints, words, ones)


def _products(x: Sequence[Expr], w: Sequence[Expr]) -> Expr:
    """Return the products of some pairs, summed over pairs, in int16: smull, and smlal for the others."""
    return reduce(add, (a.astype("int16x8") * b.astype("int16x8") for a, b in zip(x, w, strict=True)))


def _smull(acc: Expr, x: Sequence[Expr], w: Sequence[Expr]) -> Expr:
    return acc + intrinsic("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", _products(x, w))


def _vmull(acc: Expr, x: Sequence[Expr], w: Sequence[Expr]) -> Expr:
    return intrinsic("int32x4", "llvm.arm.neon.vpadals.v4i32.v8i16", acc, _products(x, w))


def _fcvtns(x: Expr) -> Expr:
    return intrinsic("int32x4", "llvm.aarch64.neon.fcvtns.v4i32.v4f32", x)


def _by_adding(x: Expr) -> Expr:
    """Round what is below 2**22: ARMv7 has no conversion that rounds to nearest."""
    bits = tirx.const(0x4B400000, "int32")  # of ROUNDING
    assert ROUNDING == 1.5 * 2.0**23
    lanes = lanes_of(x)
    shifted = x + tirx.Broadcast(tirx.const(ROUNDING, "float32"), lanes)
    return tirx.reinterpret(f"int32x{lanes}", shifted) - tirx.Broadcast(bits, lanes)


_TO_INT = {8: "llvm.x86.avx.cvt.ps2dq.256", 4: "llvm.x86.sse2.cvtps2dq"}
CURRENT_DIRECTION = 4
"""Of rounding: that of the control register, to nearest and ties to even."""


def _cvtps2dq(x: Expr) -> Expr:
    lanes = lanes_of(x)
    dtype = f"int32x{lanes}"
    if lanes in _TO_INT:
        return intrinsic(dtype, _TO_INT[lanes], x)
    all_lanes, nothing = tirx.const(-1, "int16"), tirx.Broadcast(tirx.const(0, "int32"), lanes)
    mode = tirx.const(CURRENT_DIRECTION, "int32")
    return intrinsic(dtype, "llvm.x86.avx512.mask.cvtps2dq.512", x, nothing, all_lanes, mode)


def _truncated(parts: Sequence[Expr]) -> Expr:
    """Return the low bytes, in order: they hold the numbers, which are no larger than 127."""
    return tirx.Shuffle(list(parts), list(range(LANE_BYTES))).astype(f"int8x{LANE_BYTES}")


def _low_bytes(columns: Sequence[Expr]) -> Expr:
    """Return the low bytes, four columns of a token after the other: LLVM takes three instructions (trn1, tbl, bif)."""
    bytes_ = COLUMNS * lanes_of(columns[0])
    order = [c * bytes_ + byte for byte in range(0, bytes_, COLUMNS) for c in range(COLUMNS)]
    return tirx.Shuffle([tirx.reinterpret(f"int8x{bytes_}", column) for column in columns], order)


_PACK = {16: ("sse2.packssdw.128", "sse2.packsswb.128"), 32: ("avx2.packssdw", "avx2.packsswb")}
_PACK[64] = ("avx512.packssdw.512", "avx512.packsswb.512")


def _packed(parts: Sequence[Expr]) -> Expr:
    """Return the numbers + 128, narrowed within 128 bits."""
    bytes_ = lanes_of(parts[0]) * 4
    to_words, to_bytes = (f"llvm.x86.{name}" for name in _PACK[bytes_])
    words = [intrinsic(f"int16x{bytes_ // 2}", to_words, parts[i], parts[i + 1]) for i in (0, 2)]
    numbers = intrinsic(f"int8x{bytes_}", to_bytes, *words)
    return numbers ^ tirx.Broadcast(tirx.const(-128, "int8"), bytes_)


def _shifted(columns: Sequence[Expr]) -> Expr:
    """Return the numbers + 128, each shifted to its byte: within lanes, where a look-up in four registers takes several."""
    lanes = lanes_of(columns[0])
    word, low = columns[-1], tirx.Broadcast(tirx.const(255, "int32"), lanes)
    for column in reversed(columns[:-1]):
        word = (column & low) | (word << tirx.Broadcast(tirx.const(8, "int32"), lanes))
    numbers = tirx.reinterpret(f"int8x{COLUMNS * lanes}", word)
    return numbers ^ tirx.Broadcast(tirx.const(-128, "int8"), COLUMNS * lanes)


DOT_PRODUCTS: dict[str, DotProduct] = {
    "sdot": DotProduct(BITS_8, False, 1, 0, False, _sdot, _fcvtns, _truncated, _low_bytes),
    "vpdpbusd": DotProduct(BITS_8, True, 1, 0, False, _vpdpbusd, _cvtps2dq, _packed, _shifted),
    "vpmaddubsw": DotProduct(BITS_7, True, 1, 1, False, _vpmaddubsw, _cvtps2dq, _packed, _shifted),
    "smull": DotProduct(BITS_7, False, 2, 4, True, _smull, _fcvtns, _truncated, _low_bytes),
    "vmull": DotProduct(BITS_7, False, 2, 4, True, _vmull, _by_adding, _truncated, _low_bytes),
}
"""By the name of the instruction: 64-bit ARM with and without dot products, x86 with and without VNNI, 32-bit ARM."""
