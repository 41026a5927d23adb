"""The plan of a variant from its module alone: also of one that was printed, and read back."""

import numpy as np
import pytest
import tvm
from tvm.ir import load_json, save_json

from rt3_tvm.checkpoint import Checkpoint, Level
from rt3_tvm.codegen.kernels import KernelTable
from rt3_tvm.codegen.plan import plan_variant
from rt3_tvm.codegen.weights import WeightStore
from rt3_tvm.schedules.linear_decisions import LinearPacking
from rt3_tvm.transform.context import WeightRef, references_of
from rt3_tvm.transform.pipeline import level_phases, run_phases, shared_phases
from tests.ir.test_passes import TwoLinears, two_linears_context

READ_BACK = {
    "json": lambda mod: load_json(save_json(mod)),
    "script": lambda mod: tvm.script.from_source(mod.script()),
}


def planned(mod, context):
    """Return the plan of a module, the arrays that it refers to and the functions that it calls."""
    rng = np.random.default_rng(1)
    shapes = {"first": (96, 64), "bias": (96,), "second": (64, 96)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    store, kernels = WeightStore(Checkpoint({}, weights, (Level(0.5, context.matrices),))), KernelTable()
    draft = plan_variant(mod, context.level, context.length, kernels, store)
    return draft.placed(store.lay_out().offsets), store.arrays, kernels.kernels


@pytest.mark.parametrize("form", READ_BACK)
def test_a_module_that_was_read_back_has_the_same_plan(form):
    context = two_linears_context()
    lowered = run_phases(run_phases(TwoLinears, shared_phases()), level_phases(context))
    plan, arrays, kernels = planned(lowered, context)
    again, arrays_again, kernels_again = planned(READ_BACK[form](lowered), context)
    assert again == plan and kernels_again == kernels
    assert [step.matrix for step in plan.steps if step.matrix] == ["first", "second"]
    for array, same in zip(arrays, arrays_again, strict=True):
        np.testing.assert_array_equal(array, same)


@pytest.mark.parametrize(
    "ref",
    [
        WeightRef("raw", "w"),
        WeightRef("bias", "w", "b", 2, LinearPacking(4, 2, 3), dense=True),
        WeightRef("values", "w", level=0, transposed=True),
    ],
)
def test_a_reference_is_read_back_from_attributes(ref):
    attrs = tvm.ir.make_node("ir.DictAttrs", **{"rt3.weights": [ref.to_attrs()]})
    assert references_of(attrs) == [ref]


def test_lowering_twice_changes_nothing():
    """The pass has no side effect: a context serves any number of modules."""
    context = two_linears_context()
    before, fused = dict(context.__dict__), run_phases(TwoLinears, shared_phases())
    first, second = (run_phases(fused, level_phases(context)) for _ in range(2))
    tvm.ir.assert_structural_equal(first, second)
    assert context.__dict__ == before
