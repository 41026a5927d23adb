"""Instructions spelt out for a CPU that lacks them, against those that this machine has, and NumPy."""

import numpy as np
import pytest
from tvm import tirx
from tvm.script import tirx as T

from rt3_tvm.bench.kernel import aligned
from rt3_tvm.codegen import portable
from rt3_tvm.codegen.portable import INSTRUCTIONS, Instruction, architecture
from rt3_tvm.schedules.cpu import features_of
from rt3_tvm.schedules.vector_math import DOWN
from tests.kernels.harness import CLUSTER, run_kernel

TARGET = CLUSTER.target_dict()
VECTORS = {
    "llvm.aarch64.neon.sdot": ("v4i32.v16i8", "int32x4", ("int32x4", "int8x16", "int8x16")),
    "llvm.aarch64.neon.addp": ("v8i16", "int16x8", ("int16x8", "int16x8")),
    "llvm.aarch64.neon.saddlp": ("v4i32.v8i16", "int32x4", ("int16x8",)),
    "llvm.aarch64.neon.fcvtns": ("v4i32.v4f32", "int32x4", ("float32x4",)),
    "llvm.arm.neon.vpadd": ("v4i16", "int16x4", ("int16x4", "int16x4")),
    "llvm.arm.neon.vpadals": ("v4i32.v8i16", "int32x4", ("int32x4", "int16x8")),
    "llvm.x86.avx512.vpdpbusd.512": ("", "int32x16", ("int32x16", "int8x64", "int8x64")),
    "llvm.x86.avx512.vpdpbusd.256": ("", "int32x8", ("int32x8", "int8x32", "int8x32")),
    "llvm.x86.avx2.pmadd.ub.sw": ("", "int16x16", ("int8x32", "int8x32")),
    "llvm.x86.avx512.pmaddubs.w.512": ("", "int16x32", ("int8x64", "int8x64")),
    "llvm.x86.avx512.vpdpbusd.128": ("", "int32x4", ("int32x4", "int8x16", "int8x16")),
    "llvm.x86.ssse3.pmadd.ub.sw.128": ("", "int16x8", ("int8x16", "int8x16")),
    "llvm.x86.sse2.pmadd.wd": ("", "int32x4", ("int16x8", "int16x8")),
    "llvm.x86.avx2.pmadd.wd": ("", "int32x8", ("int16x16", "int16x16")),
    "llvm.x86.avx512.pmaddw.d.512": ("", "int32x16", ("int16x32", "int16x32")),
    "llvm.x86.sse2.cvtps2dq": ("", "int32x4", ("float32x4",)),
    "llvm.x86.avx.cvt.ps2dq.256": ("", "int32x8", ("float32x8",)),
    "llvm.x86.avx512.mask.cvtps2dq.512": ("", "int32x16", ("float32x16",)),
    "llvm.x86.sse2.packssdw.128": ("", "int16x8", ("int32x4", "int32x4")),
    "llvm.x86.avx2.packssdw": ("", "int16x16", ("int32x8", "int32x8")),
    "llvm.x86.avx512.packssdw.512": ("", "int16x32", ("int32x16", "int32x16")),
    "llvm.x86.sse2.packsswb.128": ("", "int8x16", ("int16x8", "int16x8")),
    "llvm.x86.avx2.packsswb": ("", "int8x32", ("int16x16", "int16x16")),
    "llvm.x86.avx512.packsswb.512": ("", "int8x64", ("int16x32", "int16x32")),
    "llvm.x86.avx512.vpermi2var.ps.512": ("", "float32x16", ("float32x16", "int32x16", "float32x16")),
    "llvm.x86.avx512.mask.reduce.ps.512": ("", "float32x16", ("float32x16",)),
    "llvm.x86.avx512.mask.scalef.ps.512": ("", "float32x16", ("float32x16", "float32x16")),
}
"""Suffix, result and arguments of each instruction."""


def pairs(x):
    return x[..., 0::2].astype(np.int64) + x[..., 1::2]


def scaled(x, powers):
    """Return x * 2**floor(powers); infinite where that is too large, as the instruction's."""
    with np.errstate(over="ignore"):
        return np.ldexp(x, np.floor(powers).astype(np.int32))


REFERENCES = {
    "llvm.aarch64.neon.sdot": lambda acc, x, w: acc + (x.astype(np.int64) * w).reshape(-1, 4).sum(axis=1),
    "llvm.aarch64.neon.addp": lambda a, b: pairs(np.concatenate([a, b])).astype(np.int16),
    "llvm.aarch64.neon.saddlp": pairs,
    "llvm.aarch64.neon.fcvtns": np.rint,
    "llvm.arm.neon.vpadd": lambda a, b: pairs(np.concatenate([a, b])).astype(np.int16),
    "llvm.arm.neon.vpadals": lambda acc, x: acc + pairs(x),
    "llvm.x86.avx512.vpermi2var.ps.512": lambda low, places, high: np.concatenate([low, high])[places % 32],
    "llvm.x86.avx512.mask.reduce.ps.512": lambda x: x - np.floor(x),
    "llvm.x86.avx512.mask.scalef.ps.512": scaled,
}
"""What some compute, by their manuals: those of ARM, and those that a machine without AVX-512 lacks."""


def split(dtype):
    element, _, lanes = dtype.partition("x")
    return element, int(lanes)


def kernel_of(name):
    """Return a kernel that applies an instruction to one vector of each array."""
    suffix, result, arguments = VECTORS[name]
    padded = (*arguments, *(("int32x1",) * (3 - len(arguments))))
    (a_type, a_lanes), (b_type, b_lanes), (c_type, c_lanes), (out_type, out_lanes) = map(split, (*padded, result))

    def applied(*buffers):
        vectors = [
            tirx.BufferLoad(buffer, [tirx.Ramp(0, 1, split(dtype)[1])])
            for buffer, dtype in zip(buffers, arguments, strict=False)
        ]
        if "reduce" in name:
            vectors += [tirx.const(DOWN, "int32")]
        if "mask" in name:  # what lanes keep that are left out, which ones are not, and how to round
            vectors += [tirx.Broadcast(tirx.const(0, out_type), out_lanes)]
            vectors += [tirx.const(-1, "int16"), tirx.const(4, "int32")]
        return T.call_llvm_pure_intrin(result, f"{name}.{suffix}" if suffix else name, *vectors)

    @T.prim_func(s_tir=True)
    def apply(a: T.handle, b: T.handle, c: T.handle, o: T.handle) -> None:
        A = T.match_buffer(a, (a_lanes,), a_type)
        B = T.match_buffer(b, (b_lanes,), b_type)
        C = T.match_buffer(c, (c_lanes,), c_type)
        out = T.match_buffer(o, (out_lanes,), out_type)
        T.buffer_store(out, applied(A, B, C), [tirx.Ramp(0, 1, out_lanes)])

    return apply


def inputs_of(name, rng):
    """Return the arguments of an instruction, over all that they may be where it saturates or cannot overflow."""
    arrays = []
    for element, lanes in map(split, VECTORS[name][2]):
        if element == "float32":
            arrays.append(np.rint(rng.uniform(-254, 254, lanes)).astype(np.float32) / 2)  # ties among them
        else:
            narrow = "neon" in name and element == "int16"  # its sums are int16 too
            most = 1000 if narrow else np.iinfo(element).max
            arrays.append(rng.integers(-most, most, lanes, endpoint=True).astype(element))
    return arrays


def applied_to(name, arrays):
    element, lanes = split(VECTORS[name][1])
    padding = [np.zeros(1, np.int32)] * (3 - len(arrays))
    given = [aligned(array) for array in (*arrays, *padding, np.zeros(lanes, element))]
    run_kernel("quantise", kernel_of(name), *given)
    return given[-1]


def test_every_instruction_is_here():
    assert set(VECTORS) == set(INSTRUCTIONS)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_spelt_out_it_is_the_same(rng, name, monkeypatch):
    native = INSTRUCTIONS[name].is_native(architecture(TARGET), features_of(TARGET))
    if not native and name not in REFERENCES:
        pytest.skip(f"this machine lacks {name}, and there is no reference of it")
    for _ in range(2):
        arrays = inputs_of(name, rng)
        with monkeypatch.context() as patch:
            patch.setattr(Instruction, "is_native", lambda *_: False)
            got = applied_to(name, arrays)
        assert np.abs(got).any()
        if name in REFERENCES:
            np.testing.assert_array_equal(got, REFERENCES[name](*arrays))
        if native:
            np.testing.assert_array_equal(got, applied_to(name, arrays))


def test_an_instruction_that_is_not_known_is_no_end_of_the_process(monkeypatch):
    """LLVM would kill it."""
    name = "llvm.aarch64.neon.sdot" if architecture(TARGET) != "llvm.aarch64." else "llvm.x86.avx2.pmadd.wd"
    monkeypatch.delitem(portable.INSTRUCTIONS, name)
    with pytest.raises(AssertionError, match=f"what {name} computes must stand in"):
        applied_to(name, inputs_of(name, np.random.default_rng(0)))
