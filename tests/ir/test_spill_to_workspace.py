"""Buffers that do not fit the stack move to the workspace: the kernel, its call, and the numbers."""

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.ir import assert_structural_equal
from tvm.script import relax as R
from tvm.script import tirx as T

from rt3_tvm import device
from rt3_tvm.schedules import BY_LANE_ATTR, KERNEL_ATTR
from rt3_tvm.schedules.cpu import KERNEL_STACK_BYTES, CpuShape
from rt3_tvm.schedules.layout import INT8
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.pipeline import level_phases, run_phases, shared_phases
from rt3_tvm.transform.schedule_kernels import ScheduleKernels
from rt3_tvm.transform.spill_to_workspace import SpillToWorkspace
from tests.ir.before_after import Kernels, applied, check_unchanged
from tests.ir.test_attention import evaluate, module
from tests.kernels.harness import CPU

op = relax.op
A76 = CpuShape.of(device.load("rk3588").with_cluster("big0").cluster)


def lowered_and_compared(mod):
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal([int(d) for d in p.ty.shape]).astype(np.float32) for p in mod["main"].params]
    context = VariantContext(0, 1, 1, CPU, {}, {})
    lowered = run_phases(run_phases(mod, shared_phases()), level_phases(context))
    np.testing.assert_allclose(evaluate(lowered, inputs), evaluate(mod, inputs), atol=1e-5, rtol=0)
    return lowered


def test_scores_of_many_tokens_are_one_workspace_for_each_head():
    def attention(emit, q, k, v):
        return emit(op.matmul(op.nn.softmax(op.matmul(q, op.permute_dims(k, [0, 1, 3, 2])), axis=-1), v))

    lowered = lowered_and_compared(module(attention, *[(1, 2, 1616, 4)] * 3))
    kernel = next(f for _, f in lowered.functions_items() if str(f.attrs.get(KERNEL_ATTR, "")) == "attention")
    spilt = kernel.params[6:]  # weights have a buffer of their own where they do not take the place of scores
    assert [[int(d) for d in p.ty.shape] for p in spilt] == [[2, 1616, 16]] * len(spilt)
    assert "S_of_tasks" in {p.name for p in spilt} <= {"S_of_tasks", "P_of_tasks"}
    assert_structural_equal(tvm.script.from_source(lowered.script(show_meta=True)), lowered)


def test_keys_and_values_of_many_tokens_are_still_read_by_lane():
    """Those of float16 are buffers of the kernel, which by_lane.py knows by name."""

    def attention(emit, q, k, v):
        return emit(op.matmul(op.nn.softmax(op.matmul(q, op.permute_dims(k, [0, 1, 3, 2])), axis=-1), v))

    context = VariantContext(0, 1, 1, A76, {}, {}, element=INT8)
    mod = module(attention, *[(1, 2, 512, 64)] * 3)
    lowered = run_phases(run_phases(mod, shared_phases()), level_phases(context))
    family = "attention_float16"
    kernel = next(f for _, f in lowered.functions_items() if str(f.attrs.get(KERNEL_ATTR, "")) == family)
    names = [p.name for p in kernel.params[6:]]
    assert names == ["keys_of_tasks", "values_of_tasks"]
    assert set(names) <= {str(name) for name in kernel.attrs[BY_LANE_ATTR]["weights"]}


def test_a_buffer_of_a_task_becomes_a_result_with_a_part_for_each():
    """1616 x 16 floats are 100 KiB; the smaller buffer stays on the stack."""

    @T.prim_func(private=True, s_tir=True)
    def before(x: T.Buffer((2, 1616, 16)), y: T.Buffer((2, 16))):
        for h in T.serial(2, annotations={"rt3.tasks": 1}):
            with T.sblock("head"):
                vh = T.axis.spatial(2, h)
                T.reads(x[vh, 0:1616, 0:16])
                T.writes(y[vh, 0:16])
                S = T.sblock_alloc_buffer((1616, 16))
                total = T.sblock_alloc_buffer((16,))
                for i, j in T.grid(1616, 16):
                    with T.sblock("double"):
                        vi, vj = T.axis.remap("SS", [i, j])
                        S[vi, vj] = x[vh, vi, vj] + x[vh, vi, vj]
                for j in range(16):
                    with T.sblock("last"):
                        vj = T.axis.spatial(16, j)
                        total[vj] = S[1599, vj]
                for j in range(16):
                    with T.sblock("store"):
                        vj = T.axis.spatial(16, j)
                        y[vh, vj] = total[vj]

    @T.prim_func(private=True, s_tir=True)
    def expected(x: T.Buffer((2, 1616, 16)), y: T.Buffer((2, 16)), S_of_tasks: T.Buffer((2, 1616, 16))):
        for h in T.serial(2, annotations={"rt3.tasks": 1}):
            with T.sblock("head"):
                vh, task = T.axis.remap("SS", [h, h])
                T.reads(x[vh, 0:1616, 0:16])
                T.writes(y[vh, 0:16], S_of_tasks[task, 0:1616, 0:16])
                total = T.sblock_alloc_buffer((16,))
                offset = T.int32()
                S = T.match_buffer(S_of_tasks[task, 0:1616, 0:16], (1616, 16), elem_offset=offset, offset_factor=1)
                for i, j in T.grid(1616, 16):
                    with T.sblock("double"):
                        vi, vj = T.axis.remap("SS", [i, j])
                        S[vi, vj] = x[vh, vi, vj] + x[vh, vi, vj]
                for j in range(16):
                    with T.sblock("last"):
                        vj = T.axis.spatial(16, j)
                        total[vj] = S[1599, vj]
                for j in range(16):
                    with T.sblock("store"):
                        vj = T.axis.spatial(16, j)
                        y[vh, vj] = total[vj]

    called, called_after = Kernels(f=before), Kernels(f1=expected)

    @R.function
    def main(x: R.Tensor((2, 1616, 16), "float32")):
        with R.dataflow():
            y = R.call_tir(called.f, (x,), R.Tensor((2, 16), "float32"))
            R.output(y)
        return y

    @R.function
    def main_after(x: R.Tensor((2, 1616, 16), "float32")):
        with R.dataflow():
            both = R.call_tir(called_after.f1, (x,), [R.Tensor((2, 16), "float32"), R.Tensor((2, 1616, 16), "float32")])
            y = both[0]
            R.output(y)
        return y

    assert_structural_equal(applied([SpillToWorkspace()], called.module(main)), called_after.module(main_after))


def test_a_buffer_of_all_tasks_becomes_a_result():
    @T.prim_func(private=True, s_tir=True)
    def before(x: T.Buffer((1616, 16)), y: T.Buffer((1616, 16)), z: T.Buffer((1616, 16))):
        total = T.sblock_alloc_buffer((1616, 16))
        for i, j in T.grid(1616, 16):
            with T.sblock("total"):
                vi, vj = T.axis.remap("SS", [i, j])
                total[vi, vj] = x[vi, vj] + x[vi, vj]
        for i, j in T.grid(1616, 16):
            with T.sblock("both"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = total[vi, vj]
                z[vi, vj] = total[vi, vj]

    @T.prim_func(private=True, s_tir=True)
    def expected(
        x: T.Buffer((1616, 16)), y: T.Buffer((1616, 16)), z: T.Buffer((1616, 16)), total: T.Buffer((1616, 16))
    ):
        for i, j in T.grid(1616, 16):
            with T.sblock("total"):
                vi, vj = T.axis.remap("SS", [i, j])
                total[vi, vj] = x[vi, vj] + x[vi, vj]
        for i, j in T.grid(1616, 16):
            with T.sblock("both"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = total[vi, vj]
                z[vi, vj] = total[vi, vj]

    called, called_after = Kernels(f=before), Kernels(f1=expected)

    @R.function
    def main(x: R.Tensor((1616, 16), "float32")):
        with R.dataflow():
            both = R.call_tir(called.f, (x,), [R.Tensor((1616, 16), "float32"), R.Tensor((1616, 16), "float32")])
            y = both[1]
            R.output(y)
        return y

    @R.function
    def main_after(x: R.Tensor((1616, 16), "float32")):
        with R.dataflow():
            three = R.call_tir(
                called_after.f1,
                (x,),
                [R.Tensor((1616, 16), "float32"), R.Tensor((1616, 16), "float32"), R.Tensor((1616, 16), "float32")],
            )
            y = three[1]
            R.output(y)
        return y

    assert_structural_equal(applied([SpillToWorkspace()], called.module(main)), called_after.module(main_after))


def doubled_sums(rows):
    """Return a module of one kernel, (rows, 16, 3) -> (rows, 16), whose sums of the last axis are a buffer."""
    x, k = te.placeholder((rows, 16, 3), "float32", name="x"), te.reduce_axis((0, 3), "k")
    total = te.compute((rows, 16), lambda i, j: te.sum(x[i, j, k], axis=k), name="total")
    y = te.compute((rows, 16), lambda i, j: total[i, j] + total[i, j], name="y")
    func = te.create_prim_func([x, y]).with_attr(KERNEL_ATTR, "elementwise")
    builder = relax.BlockBuilder()
    var = relax.Var("x", relax.TensorType((rows, 16, 3), "float32"))
    with builder.function("main", [var]):
        with builder.dataflow():
            call = relax.call_tir(builder.add_func(func, "f"), [var], relax.TensorType((rows, 16), "float32"))
            out = builder.emit_output(relax.Tuple([builder.emit(call)]))
        builder.emit_func_output(out)
    return ScheduleKernels(CPU)(builder.get())


def test_intermediates_of_a_generic_kernel(rng):
    rows = KERNEL_STACK_BYTES // 64 + 1
    after = SpillToWorkspace()(doubled_sums(rows))
    (kernel,) = (f for _, f in after.functions_items() if isinstance(f, tirx.PrimFunc))
    assert [p.name for p in kernel.params] == ["x", "y", "total"]
    x = rng.standard_normal((rows, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(evaluate(after, [x]), 2 * x.sum(2), atol=1e-5)


def test_what_fits_stays():
    check_unchanged([SpillToWorkspace()], doubled_sums(KERNEL_STACK_BYTES // 64))
