"""Each kernel is scheduled by the row of its family; what has none is elementwise."""

from tvm.ir import assert_structural_equal
from tvm.script import relax as R
from tvm.script import tirx as T

from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.transform.schedule_kernels import ScheduleKernels
from tests.ir.before_after import Kernels, applied

CPU = CpuShape(32, 16, 32768)


def calling(kernel):
    """Return a module that calls a kernel (4, 16) -> (4, 16)."""
    kernels = Kernels(f=kernel)

    @R.function
    def main(x: R.Tensor((4, 16), "float32")):
        with R.dataflow():
            y = R.call_tir(kernels.f, (x,), R.Tensor((4, 16), "float32"))
            R.output(y)
        return y

    return kernels.module(main)


def check(before, expected):
    assert_structural_equal(applied([ScheduleKernels(CPU)], calling(before)), calling(expected))


def test_what_has_no_family_is_inlined_and_in_vectors():
    @T.prim_func(private=True, s_tir=True)
    def before(x: T.Buffer((4, 16)), y: T.Buffer((4, 16))):
        total = T.sblock_alloc_buffer((4, 16))
        for i, j in T.grid(4, 16):
            with T.sblock("total"):
                vi, vj = T.axis.remap("SS", [i, j])
                total[vi, vj] = x[vi, vj] + x[vi, vj]
        for i, j in T.grid(4, 16):
            with T.sblock("y"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = T.max(total[vi, vj], T.float32(0))

    @T.prim_func(private=True, s_tir=True)
    def expected(x: T.Buffer((4, 16)), y: T.Buffer((4, 16))):
        T.func_attr({"rt3.kernel": "elementwise", "tirx.noalias": True})
        for i in T.serial(4, annotations={"rt3.tasks": 1}):
            for j0 in range(2):
                for j1 in T.vectorized(8):
                    with T.sblock("y"):
                        vi = T.axis.spatial(4, i)
                        vj = T.axis.spatial(16, j0 * 8 + j1)
                        y[vi, vj] = T.max(x[vi, vj] + x[vi, vj], T.float32(0))

    check(before, expected)


def test_a_reduction_stays_a_nest_of_its_own():
    @T.prim_func(private=True, s_tir=True)
    def before(x: T.Buffer((4, 16)), y: T.Buffer((4, 16))):
        total = T.sblock_alloc_buffer((4,))
        for i, k in T.grid(4, 16):
            with T.sblock("total"):
                vi, vk = T.axis.remap("SR", [i, k])
                with T.init():
                    total[vi] = T.float32(0)
                total[vi] = total[vi] + x[vi, vk]
        for i, j in T.grid(4, 16):
            with T.sblock("y"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = x[vi, vj] / total[vi]

    @T.prim_func(private=True, s_tir=True)
    def expected(x: T.Buffer((4, 16)), y: T.Buffer((4, 16))):
        T.func_attr({"rt3.kernel": "elementwise", "tirx.noalias": True})
        total = T.sblock_alloc_buffer((4,))
        for i, k in T.grid(4, 16):
            with T.sblock("total"):
                vi, vk = T.axis.remap("SR", [i, k])
                with T.init():
                    total[vi] = T.float32(0)
                total[vi] = total[vi] + x[vi, vk]
        for i, j0 in T.grid(4, 2):
            for j1 in T.vectorized(8):
                with T.sblock("y"):
                    vi = T.axis.spatial(4, i)
                    vj = T.axis.spatial(16, j0 * 8 + j1)
                    y[vi, vj] = x[vi, vj] / total[vi]

    check(before, expected)


def test_a_family_is_scheduled_by_its_own_row():
    """Scattered rows are unrolled by 4, and no vectors."""

    @T.prim_func(private=True, s_tir=True)
    def before(x: T.Buffer((4, 16)), y: T.Buffer((4, 16))):
        T.func_attr({"rt3.kernel": "from_feature_major"})
        for b, t, f in T.grid(2, 2, 16):
            with T.sblock("copy"):
                vb, vt, vf = T.axis.remap("SSS", [b, t, f])
                y[vb * 2 + vt, vf] = x[vb * 2 + vt, vf]

    @T.prim_func(private=True, s_tir=True)
    def expected(x: T.Buffer((4, 16)), y: T.Buffer((4, 16))):
        T.func_attr({"rt3.kernel": "from_feature_major", "tirx.noalias": True})
        for bt in T.serial(4, annotations={"rt3.tasks": 1}):
            for f0 in range(4):
                for f1 in T.unroll(4):
                    with T.sblock("copy"):
                        vb = T.axis.spatial(2, bt // 2)
                        vt = T.axis.spatial(2, bt % 2)
                        vf = T.axis.spatial(16, f0 * 4 + f1)
                        y[vb * 2 + vt, vf] = x[vb * 2 + vt, vf]

    check(before, expected)
