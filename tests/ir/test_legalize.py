"""What is still an operator becomes TIR: elementwise chains fused, products our kernel, exp and erf arithmetic."""

import pytest
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from rt3_tvm.schedules import vector_math
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.matmul import BatchIndex, MatmulShape, matmul, register_block
from rt3_tvm.transform.layouts import OPAQUE
from rt3_tvm.transform.legalize import OURS, legalize_passes
from tests.ir.before_after import Kernels, applied, check_unchanged

CPU = CpuShape(32, 16, 32768)


def check(before, expected):
    assert_structural_equal(applied(legalize_passes(CPU), before), expected)


def test_an_elementwise_chain_is_one_kernel_and_reshapes_stay():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4, 8), "float32"), z: R.Tensor((8,), "float32")):
            with R.dataflow():
                a = R.add(x, z)
                b = R.nn.relu(a)
                c = R.reshape(b, (1, 32))
                y = R.negative(c)
                R.output(y)
            return y

    @T.prim_func(private=True, s_tir=True)
    def add_relu(
        x: T.Buffer((T.int64(4), T.int64(8))),
        z: T.Buffer((T.int64(8),)),
        y: T.Buffer((T.int64(4), T.int64(8))),
    ):
        T.func_attr({"tirx.noalias": True})
        total = T.sblock_alloc_buffer((T.int64(4), T.int64(8)))
        for i, j in T.grid(T.int64(4), T.int64(8)):
            with T.sblock("T_add"):
                vi, vj = T.axis.remap("SS", [i, j])
                total[vi, vj] = x[vi, vj] + z[vj]
        for i, j in T.grid(T.int64(4), T.int64(8)):
            with T.sblock("compute"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = T.max(total[vi, vj], T.float32(0))

    @T.prim_func(private=True, s_tir=True)
    def negative(x: T.Buffer((T.int64(1), T.int64(32))), y: T.Buffer((T.int64(1), T.int64(32)))):
        T.func_attr({"tirx.noalias": True, "op_pattern": 0})
        for i, j in T.grid(T.int64(1), T.int64(32)):
            with T.sblock("compute"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = x[vi, vj] * T.float32(-1)

    kernels = Kernels(fused_add_relu=add_relu, tir_negative=negative)

    @R.function
    def main(x: R.Tensor((4, 8), "float32"), z: R.Tensor((8,), "float32")):
        with R.dataflow():
            b = R.call_tir(kernels.fused_add_relu, (x, z), R.Tensor((4, 8), "float32"))
            c = R.reshape(b, (1, 32))
            y = R.call_tir(kernels.tir_negative, (c,), R.Tensor((1, 32), "float32"))
            R.output(y)
        return y

    check(Before, kernels.module(main))


FUNCTIONS = {
    "exp": (R.exp, vector_math.exp),
    "erf": (R.erf, vector_math.erf),
    "tanh": (R.tanh, vector_math.tanh),
    "sigmoid": (R.sigmoid, vector_math.sigmoid),
    "gelu": (R.nn.gelu, vector_math.gelu),
    "gelu_tanh": (R.nn.gelu_tanh, vector_math.gelu_tanh),
    "silu": (R.nn.silu, vector_math.silu),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_needs_a_library_elsewhere_is_arithmetic(name):
    operator, arithmetic = FUNCTIONS[name]

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4, 8), "float32")):
            with R.dataflow():
                y = operator(x)
                R.output(y)
            return y

    @T.prim_func(private=True, s_tir=True)
    def kernel(x: T.Buffer((T.int64(4), T.int64(8))), y: T.Buffer((T.int64(4), T.int64(8)))):
        T.func_attr({"tirx.noalias": True, "op_pattern": 0})
        for i, j in T.grid(T.int64(4), T.int64(8)):
            with T.sblock("y"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = arithmetic(x[vi, vj])

    kernels = Kernels(**{name: kernel})
    called = getattr(kernels, name)

    @R.function
    def main(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            y = R.call_tir(called, (x,), R.Tensor((4, 8), "float32"))
            R.output(y)
        return y

    check(Before, kernels.module(main))


def test_every_operator_of_ours_is_one_of_these():
    names = {f"relax.{'nn.' if name[:4] in ('gelu', 'silu') else ''}{name}" for name in FUNCTIONS}
    assert names | {"relax.cumsum", "relax.nn.pad"} == OURS.keys()


def test_a_cumulative_sum_is_a_sum_for_each_element():
    @I.ir_module
    class Before:
        @R.function
        def main(mask: R.Tensor((1, 4), "bool")):
            with R.dataflow():
                y = R.cumsum(mask, axis=-1, dtype="int32")
                R.output(y)
            return y

    @T.prim_func(private=True, s_tir=True)
    def cumsum(x: T.Buffer((T.int64(1), T.int64(4)), "bool"), y: T.Buffer((T.int64(1), T.int64(4)), "int32")):
        T.func_attr({"tirx.noalias": True, "op_pattern": 3})
        for i, j, k in T.grid(T.int64(1), T.int64(4), T.int64(4)):
            with T.sblock("y"):
                vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                with T.init():
                    y[vi, vj] = 0
                y[vi, vj] = y[vi, vj] + T.Select(vk <= vj, T.Cast("int32", x[vi, vk]), 0)

    kernels = Kernels(cumsum=cumsum)

    @R.function
    def main(mask: R.Tensor((1, 4), "bool")):
        with R.dataflow():
            y = R.call_tir(kernels.cumsum, (mask,), R.Tensor((1, 4), "int32"))
            R.output(y)
        return y

    check(Before, kernels.module(main))


def test_a_product_of_run_time_tensors_is_our_kernel():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 8), "float32"), z: R.Tensor((2, 1, 8, 16), "float32")):
            with R.dataflow():
                y = R.matmul(x, z)
                R.output(y)
            return y

    shape = MatmulShape(6, 4, 8, 16, BatchIndex(6), BatchIndex(2, 3))
    func = matmul(shape, register_block(shape, CPU))
    attrs = {"rt3.kernel": "matmul", "op_pattern": 8, "rt3.flops": 2 * 6 * 4 * 8 * 16}
    kernels = Kernels(matmul=func.with_attrs(attrs))

    @R.function
    def main(x: R.Tensor((2, 3, 4, 8), "float32"), z: R.Tensor((2, 1, 8, 16), "float32")):
        with R.dataflow():
            left = R.reshape(x, (6, 4, 8))
            right = R.reshape(z, (2, 8, 16))
            product = R.call_tir(kernels.matmul, (left, right), R.Tensor((6, 4, 16), "float32"))
            y = R.reshape(product, (2, 3, 4, 16))
            R.output(y)
        return y

    check(Before, kernels.module(main))


@I.ir_module
class Aliases:
    @R.function
    def main(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            a = R.reshape(x, (1, 32))
            b = R.expand_dims(a, axis=[0])
            c = R.squeeze(b, axis=[0])
            y = R.flatten(c)
            R.output(y)
        return y


def test_what_only_renames_a_buffer_stays():
    check_unchanged(legalize_passes(CPU), Aliases)


def test_padding_is_a_kernel_that_nothing_is_fused_with():
    """What overlapping windows read would else be computed, and spelt out, once for each window."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4, 8), "float32")):
            with R.dataflow():
                a = R.nn.relu(x)
                b = R.nn.pad(a, [0, 0, 1, 1])
                y = R.negative(b)
                R.output(y)
            return y

    functions = {v.name_hint: f for v, f in applied(legalize_passes(CPU), Before).functions_items()}
    assert len(functions) == 4  # main, and a kernel each
    assert [int(f.attrs["op_pattern"]) for n, f in functions.items() if "pad" in n] == [OPAQUE]
