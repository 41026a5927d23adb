"""The passes as a list: each has a test of its own, leaves the module that it is given alone and makes a well-formed one."""

import re
from pathlib import Path

import pytest
from tvm import relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.pipeline import level_phases, run_phases, shared_phases
from tests.kernels.harness import CPU

CONTEXT = VariantContext(0, 1, 4, CPU, {"w": "first", "u": "second", "b": "bias"}, {})
PHASES = (*shared_phases(), *level_phases(CONTEXT))
OURS = [step for _, passes in PHASES for step in passes if type(step).__module__.startswith("rt3_tvm.")]
TABLES = ["fuse_composites", "legalize"]
"""Phases that begin with a pass of TVM's that takes a table of ours."""


@I.ir_module
class TwoLayers:
    @R.function
    def main(
        x: R.Tensor((4, 8), "float32"),
        w: R.Tensor((8, 8), "float32"),
        u: R.Tensor((8, 8), "float32"),
        b: R.Tensor((8,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            wt = R.permute_dims(w)
            product = R.matmul(x, wt)
            biased = R.add(product, b)
            gate = R.sigmoid(biased)
            hidden = R.multiply(biased, gate)
            ut = R.permute_dims(u)
            product_again = R.matmul(hidden, ut)
            biased_again = R.add(product_again, b)
            gate_again = R.sigmoid(biased_again)
            y = R.multiply(biased_again, gate_again)
            R.output(y)
        return y


def test_no_pass_changes_the_module_that_it_is_given():
    mod = TwoLayers
    for _, passes in PHASES:
        for step in passes:
            given = mod.clone()
            after = step(mod)
            assert_structural_equal(mod, given)
            mod = after


@pytest.mark.parametrize("count", range(1, len(PHASES) + 1), ids=[name for name, _ in PHASES])
def test_what_a_phase_leaves_is_well_formed(count):
    relax.analysis.well_formed(run_phases(TwoLayers, PHASES[:count]))


@pytest.mark.parametrize("name", [*(re.sub(r"(?<!^)([A-Z])", r"_\1", s.info.name).lower() for s in OURS), *TABLES])
def test_every_pass_of_ours_has_a_test_before_and_after(name):
    text = (Path(__file__).parent / f"test_{name}.py").read_text(encoding="utf-8")
    assert "from tests.ir.before_after import" in text and "from tvm.script import" in text
