"""All phases on two linear layers and on a small model; each pass alone is in the files named after it."""

import numpy as np
import pytest
import transformers
from tvm import relax, tirx
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R
from tvm_ffi import structural_equal

from rt3_tvm import model as models
from rt3_tvm.export import find_linears
from rt3_tvm.frontend import import_model
from rt3_tvm.pattern import PatternRecipe, PatternShape, cut_backbone, cut_patterns
from rt3_tvm.schedules import KERNEL_ATTR, SCHEDULES
from rt3_tvm.transform.annotate_sparsity import AnnotateSparsity
from rt3_tvm.transform.composites import COMPOSITES
from rt3_tvm.transform.context import UNPRUNED, VariantContext, references_of
from rt3_tvm.transform.lower import COMPOSITE_LOWERINGS
from rt3_tvm.transform.pipeline import level_phases, run_phases, shared_phases
from tests.kernels.harness import CPU


@I.ir_module
class TwoLinears:
    @R.function
    def main(
        x: R.Tensor((2, 7, 64), "float32"),
        w0: R.Tensor((96, 64), "float32"),
        b0: R.Tensor((96,), "float32"),
        w1: R.Tensor((64, 96), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            t0 = R.permute_dims(w0)
            m0 = R.matmul(x, t0)
            a0 = R.add(m0, b0)
            g = R.nn.gelu(a0)
            t1 = R.permute_dims(w1)
            y = R.matmul(g, t1)
            z = R.add(y, x)
            out = (z,)
            R.output(out)
        return out


def two_linears_context(density=0.5, group=4):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((96, 64)).astype(np.float32)
    matrix = cut_patterns(weight, cut_backbone(weight, 0.0, 32), PatternRecipe(PatternShape(4, 16, group), 8), density)
    return VariantContext(0, 2, 7, CPU, {"w0": "first", "b0": "bias", "w1": "second"}, {"first": matrix})


@I.ir_module
class LinearWithComputedBias:
    @R.function
    def main(
        x: R.Tensor((2, 7, 64), "float32"),
        w0: R.Tensor((96, 64), "float32"),
        b0: R.Tensor((96,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            b = R.abs(b0)
            out = (R.add(R.matmul(x, R.permute_dims(w0)), b),)
            R.output(out)
        return out


def test_a_bias_that_is_computed_is_not_packed_with_the_weight():
    lowered = run_phases(run_phases(LinearWithComputedBias, shared_phases()), level_phases(two_linears_context()))
    assert {ref.kind for ref in references_of(lowered["main"].attrs)} == {"raw"}


def test_a_matrix_that_is_hardly_sparse_takes_the_dense_kernel():
    annotated = AnnotateSparsity(two_linears_context(density=0.95, group=1))(run_phases(TwoLinears, shared_phases()))
    kernels = [
        str(f.attrs["rt3.plan"]["family"]) for _, f in annotated.functions_items() if f.attrs and "rt3.plan" in f.attrs
    ]
    assert kernels == ["dense_linear", "dense_linear"]


def test_two_linears_stay_in_the_feature_major_layout():
    context = two_linears_context()
    lowered = run_phases(run_phases(TwoLinears, shared_phases()), level_phases(context))
    kernels = [str(f.attrs[KERNEL_ATTR]) for _, f in lowered.functions_items() if isinstance(f, tirx.PrimFunc)]
    assert sorted(kernels) == [
        "dense_linear",
        "elementwise",
        "from_feature_major",
        "pattern_linear",
        "to_feature_major",
    ]
    references = references_of(lowered["main"].attrs)
    assert [ref.name for ref in references] == [p.name for p in lowered["main"].params[1:]]
    held = {(ref.weight, ref.kind, ref.bias, ref.level) for ref in references}
    kinds = ("values", "offsets", "bias")
    assert held == {("first", k, "bias", 0) for k in kinds} | {("second", k, "", UNPRUNED) for k in kinds}


@pytest.fixture(scope="module")
def imported():
    return import_model(models.load("random-tiny"), 1, 16)


def families_called(imported, matrices):
    """Return the family of each kernel that a model of one input of 16 tokens calls, in order."""
    context = VariantContext(1, 1, 16, CPU, imported.parameters, matrices)
    lowered = run_phases(run_phases(imported.mod, shared_phases()), level_phases(context))
    calls = []
    for block in lowered["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and value.op.name == "relax.call_tir":
                calls.append(str(lowered[value.args[0]].attrs[KERNEL_ATTR]))
    return calls


def test_whole_model_has_transposes_only_at_its_ends(imported, tiny_checkpoint):
    calls = families_called(imported, tiny_checkpoint.levels[1].matrices)
    # Out: both outputs. In: the first token, which the pooler takes from the output.
    assert calls.count("from_feature_major") == 2 and calls.count("to_feature_major") == 1
    assert calls.count("pattern_linear") == 12 and calls.count("few_token_linear") == 1
    assert calls.count("attention") == 2 and calls.count("layer_norm") == 5
    assert set(calls) <= set(SCHEDULES)


def test_a_model_with_its_length_first_has_transposes_only_at_its_ends():
    """XLNet: projections to heads are layers, positions are shifted by a kernel of their own, into the layout of scores."""
    config = transformers.XLNetConfig(vocab_size=50, d_model=64, n_layer=2, n_head=4, d_inner=96)
    calls = families_called(import_model(transformers.XLNetModel(config).eval(), 1, 16), {})
    # In: the mask of queries and keys, once for both layers.
    assert calls.count("to_feature_major") == calls.count("from_feature_major") == 1
    assert calls.count("dense_linear") == 2 * 7
    assert calls.count("attention") == calls.count("relative_scores") == 2
    assert calls.count("elementwise") < 10 and "matmul" not in calls


def test_shifted_scores_of_a_model_that_pools_its_tokens_are_never_moved():
    """Funnel: scores of positions with a gate, and of segments; queries that were pooled see twice as many keys."""
    sizes = {"vocab_size": 50, "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 96}
    config = transformers.FunnelConfig(**sizes, block_sizes=[1, 1], num_decoder_layers=0)
    calls = families_called(import_model(transformers.FunnelModel(config).eval(), 1, 16), {})
    assert calls.count("attention") == 2 and calls.count("relative_scores") == 2 * 2
    assert calls.count("dense_linear") + calls.count("few_token_linear") == 2 * 7 and "matmul" not in calls


def test_import_keeps_attention_whole_and_finds_linears_by_graph(imported):
    fused = run_phases(imported.mod, shared_phases())
    names = [str(f.attrs["Composite"]) for _, f in fused.functions_items() if "Composite" in (f.attrs or {})]
    assert names.count("rt3.attention") == 1  # both layers share one function
    found = find_linears(models.load("random-tiny"))
    assert len(found) == 13 and found[0].shape == (48, 48)


@pytest.mark.parametrize(
    ("longer", "shorter"),
    [
        ("linear_bias_gelu", "linear_gelu"),
        ("linear_bias_silu", "linear_bias"),
        ("linear_bias", "linear"),
        ("linear_transposed_bias_tanh", "linear_transposed_bias"),
        ("add_layer_norm", "layer_norm"),
        ("add_rms_norm", "rms_norm"),
    ],
)
def test_a_longer_composite_is_matched_before_one_that_it_contains(longer, shorter):
    names = list(COMPOSITES)
    assert names.index(f"rt3.{longer}") < names.index(f"rt3.{shorter}")


def test_every_kind_of_composite_has_a_lowering():
    assert {row.kind for row in COMPOSITES.values()} == COMPOSITE_LOWERINGS.keys()


def test_dump_writes_a_file_per_phase(tmp_path):
    context = two_linears_context()
    mod = run_phases(TwoLinears, shared_phases(), tmp_path, "t7_")
    run_phases(mod, level_phases(context), tmp_path, "t7_level0_")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "t7_1_simplify.py",
        "t7_2_fuse_composites.py",
        "t7_level0_3_annotate_sparsity.py",
        "t7_level0_4_to_feature_major.py",
        "t7_level0_5_legalize.py",
        "t7_level0_6_schedule_kernels.py",
    ]
    assert "rt3.matrix" in (tmp_path / "t7_level0_3_annotate_sparsity.py").read_text()


def test_plugin_registers_once():
    from rt3_tvm import _plugin

    _plugin.register()
    fused = relax.get_pipeline("rt3")(TwoLinears)
    assert_structural_equal(fused, run_phases(TwoLinears, shared_phases()))
    assert not structural_equal(fused, TwoLinears)
