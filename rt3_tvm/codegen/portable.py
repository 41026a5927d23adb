"""Instructions of one kind of CPU spelt out for another, so that kernels of a device can be run by the machine that builds them.

Kernels of int8 call instructions by LLVM's names, and LLVM ends the process on one that its target lacks. What stands here
computes the same in vectors that every target has: slow, and to the bit.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import IRModule, tirx
from tvm.script import tirx as T
from tvm.tirx import Expr

from rt3_tvm.schedules.cpu import features_of
from rt3_tvm.schedules.dot_products import lanes_of

CALL = tvm.ir.Op.get("tirx.call_llvm_pure_intrin")
LANE_BITS = 128
"""Instructions of x86 that narrow stay within so many bits."""


@dataclass(frozen=True)
class Instruction:
    """An instruction: the architecture that has it, with any of some sets of features, and what it computes."""

    arch: str
    features: tuple[frozenset[str], ...]
    spelt_out: Callable[..., Expr]

    def is_native(self, arch: str, features: frozenset[str]) -> bool:
        """Return whether a target has it."""
        return arch == self.arch and any(needed <= features for needed in self.features)


def for_target(lowered: IRModule, target: Mapping[str, Any]) -> IRModule:
    """Return a lowered module in which no instruction is called that a target lacks."""
    arch, features = architecture(target), features_of(target)

    def spell_out(call: tvm.ir.Call) -> Expr:
        if not call.op.same_as(CALL):
            return call
        name = str(tvm.target.codegen.llvm_get_intrinsic_name(int(call.args[0].value)))
        known = INSTRUCTIONS.get(name)
        if known is None:
            assert not name.startswith(ARCHITECTURES), f"what {name} computes must stand in {__name__}"
            return call
        return call if known.is_native(arch, features) else known.spelt_out(*call.args[1:])

    def in_function(func: tirx.PrimFunc) -> tirx.PrimFunc:
        return func.with_body(tvm_ffi.structural_map(func.body, (tvm.ir.Call, spell_out)))

    return IRModule({var: in_function(func) for var, func in lowered.functions_items()})


def architecture(target: Mapping[str, Any]) -> str:
    """Return the prefix that LLVM gives instructions of a target."""
    arch = str(target.get("mtriple", "")).split("-", 1)[0]
    return "llvm.aarch64." if arch.startswith("aarch64") else ARM_32 if arch.startswith("arm") else "llvm.x86."


ARM_32 = "llvm.arm."
ARCHITECTURES = ("llvm.aarch64.", ARM_32, "llvm.x86.")


def _chosen(vectors: list[Expr], order: Iterable[int]) -> Expr:
    return tirx.Shuffle(vectors, list(order))


def _sums(products: Callable[[int], Expr], count: int) -> Expr:
    total = products(0)
    for i in range(1, count):
        total = total + products(i)
    return total


def _dot(acc: Expr, x: Expr, w: Expr) -> Expr:
    """Return the sums of four products of each lane of an accumulator."""
    lanes = lanes_of(acc)

    def product(i: int) -> Expr:
        a, b = (_chosen([v], range(i, 4 * lanes, 4)).astype(f"int32x{lanes}") for v in (x, w))
        return a * b

    return acc + _sums(product, 4)


def _unsigned(x: Expr) -> Expr:
    return tirx.reinterpret(f"uint8x{lanes_of(x)}", x)


def _pairs_of_products(x: Expr, w: Expr) -> Expr:
    """Return the sums of two products each, in int32."""
    lanes = lanes_of(x) // 2

    def product(i: int) -> Expr:
        a, b = (_chosen([v], range(i, 2 * lanes, 2)).astype(f"int32x{lanes}") for v in (x, w))
        return a * b

    return _sums(product, 2)


def _saturated(x: Expr, bits: int) -> Expr:
    lanes, most = lanes_of(x), 2 ** (bits - 1)
    low, high = (tirx.Broadcast(tirx.const(limit, "int32"), lanes) for limit in (-most, most - 1))
    return T.max(T.min(x.astype(f"int32x{lanes}"), high), low).astype(f"int{bits}x{lanes}")


def _pairs_added(a: Expr, b: Expr) -> Expr:
    lanes = lanes_of(a)
    return _chosen([a, b], range(0, 2 * lanes, 2)) + _chosen([a, b], range(1, 2 * lanes, 2))


def _pairs_added_wide(x: Expr) -> Expr:
    lanes = lanes_of(x) // 2
    return _sums(lambda i: _chosen([x], range(i, 2 * lanes, 2)).astype(f"int32x{lanes}"), 2)


def _to_nearest(x: Expr, *_: Expr) -> Expr:
    """Return the integers nearest to numbers of int8, ties to even; what is no number becomes some integer."""
    lanes = lanes_of(x)
    low, high = (tirx.Broadcast(tirx.const(limit, "float32"), lanes) for limit in (-128.0, 127.0))
    return T.nearbyint(T.max(T.min(x, high), low)).astype(f"int32x{lanes}")


def _narrowed(bits: int) -> Callable[[Expr, Expr], Expr]:
    """Return what narrows two vectors to one of half as many bits, in turn for each 128 bits."""

    def narrow(a: Expr, b: Expr) -> Expr:
        lanes, each = lanes_of(a), LANE_BITS // (2 * bits)
        blocks = range(0, lanes, each)
        order = [block + i + source * lanes for block in blocks for source in (0, 1) for i in range(each)]
        return _chosen([_saturated(a, bits), _saturated(b, bits)], order)

    return narrow


def _x86(spelt_out: Callable[..., Expr], *features: set[str]) -> Instruction:
    return Instruction("llvm.x86.", tuple(map(frozenset, features)), spelt_out)


def _neon(arch: str, spelt_out: Callable[..., Expr], *features: str) -> Instruction:
    return Instruction(arch, (frozenset(features),), spelt_out)


def _vnni(acc: Expr, x: Expr, w: Expr) -> Expr:
    return _dot(acc, _unsigned(x), w)


def _maddubs(x: Expr, w: Expr) -> Expr:
    return _saturated(_pairs_of_products(_unsigned(x), w), 16)


def _looked_up(low: Expr, places: Expr, high: Expr) -> Expr:
    """Return what each lane chooses, by its low bits, of two vectors behind one another."""
    lanes = lanes_of(places)
    place = places & tirx.Broadcast(tirx.const(2 * lanes - 1, "int32"), lanes)
    result = low
    for i in range(2 * lanes):
        number = tirx.Broadcast(_chosen([low, high], [i]), lanes)
        result = tirx.Select(place == tirx.Broadcast(tirx.const(i, "int32"), lanes), number, result)
    return result


def _above_whole(x: Expr, *_: Expr) -> Expr:
    """Return what is left of numbers above the next lower whole ones."""
    return x - T.floor(x)


def _scaled(x: Expr, powers: Expr, *_: Expr) -> Expr:
    """Return numbers between 1 and 2 times 2 to powers, rounded down: a quarter at a time, so that only the last one rounds."""
    lanes = lanes_of(x)
    low, high = (tirx.Broadcast(tirx.const(limit, "float32"), lanes) for limit in (-400.0, 400.0))
    power = T.floor(T.max(T.min(powers, high), low)).astype(f"int32x{lanes}")
    for rest in range(4):
        part = (power + tirx.Broadcast(tirx.const(rest, "int32"), lanes)) >> tirx.Broadcast(
            tirx.const(2, "int32"), lanes
        )
        exponent = (part + tirx.Broadcast(tirx.const(127, "int32"), lanes)) << tirx.Broadcast(
            tirx.const(23, "int32"), lanes
        )
        x = x * tirx.reinterpret(f"float32x{lanes}", exponent)
    return x


INSTRUCTIONS: dict[str, Instruction] = {
    "llvm.aarch64.neon.sdot": _neon("llvm.aarch64.", _dot, "dotprod"),
    "llvm.aarch64.neon.addp": _neon("llvm.aarch64.", _pairs_added),
    "llvm.aarch64.neon.saddlp": _neon("llvm.aarch64.", _pairs_added_wide),
    "llvm.aarch64.neon.fcvtns": _neon("llvm.aarch64.", _to_nearest),
    "llvm.arm.neon.vpadd": _neon("llvm.arm.", _pairs_added, "neon"),
    "llvm.arm.neon.vpadals": _neon("llvm.arm.", lambda acc, x: acc + _pairs_added_wide(x), "neon"),
    "llvm.x86.avx512.vpdpbusd.512": _x86(_vnni, {"avx512vnni"}),
    "llvm.x86.avx512.vpdpbusd.256": _x86(_vnni, {"avx512vnni", "avx512vl"}, {"avxvnni"}),
    "llvm.x86.avx512.vpdpbusd.128": _x86(_vnni, {"avx512vnni", "avx512vl"}, {"avxvnni"}),
    "llvm.x86.ssse3.pmadd.ub.sw.128": _x86(_maddubs, {"ssse3"}),
    "llvm.x86.avx2.pmadd.ub.sw": _x86(_maddubs, {"avx2"}),
    "llvm.x86.avx512.pmaddubs.w.512": _x86(_maddubs, {"avx512bw"}),
    "llvm.x86.sse2.pmadd.wd": _x86(_pairs_of_products, {"sse2"}),
    "llvm.x86.avx2.pmadd.wd": _x86(_pairs_of_products, {"avx2"}),
    "llvm.x86.avx512.pmaddw.d.512": _x86(_pairs_of_products, {"avx512bw"}),
    "llvm.x86.sse2.cvtps2dq": _x86(_to_nearest, {"sse2"}),
    "llvm.x86.avx.cvt.ps2dq.256": _x86(_to_nearest, {"avx"}),
    "llvm.x86.avx512.mask.cvtps2dq.512": _x86(_to_nearest, {"avx512f"}),
    "llvm.x86.sse2.packssdw.128": _x86(_narrowed(16), {"sse2"}),
    "llvm.x86.avx2.packssdw": _x86(_narrowed(16), {"avx2"}),
    "llvm.x86.avx512.packssdw.512": _x86(_narrowed(16), {"avx512bw"}),
    "llvm.x86.sse2.packsswb.128": _x86(_narrowed(8), {"sse2"}),
    "llvm.x86.avx2.packsswb": _x86(_narrowed(8), {"avx2"}),
    "llvm.x86.avx512.packsswb.512": _x86(_narrowed(8), {"avx512bw"}),
    "llvm.x86.avx512.vpermi2var.ps.512": _x86(_looked_up, {"avx512f"}),
    "llvm.x86.avx512.mask.reduce.ps.512": _x86(_above_whole, {"avx512dq"}),
    "llvm.x86.avx512.mask.scalef.ps.512": _x86(_scaled, {"avx512f"}),
}
"""Every instruction that kernels call by name."""
