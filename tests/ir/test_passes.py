"""Each pass on small modules, before and after."""

import re

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

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
from rt3_tvm.transform.recognise_idioms import RecogniseIdioms
from rt3_tvm.transform.simplify import simplify_passes
from tests.kernels.harness import CPU


def test_cancel_transposes():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 5), "float32")):
            with R.dataflow():
                a = R.permute_dims(x, axes=[0, 2, 1, 3])
                b = R.permute_dims(a, axes=[0, 2, 1, 3])
                c = R.add(b, x)
                d = R.permute_dims(c, axes=[0, 2, 3, 1])
                e = R.permute_dims(d, axes=[0, 2, 3, 1])
                R.output(e)
            return e

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 5), "float32")):
            with R.dataflow():
                c = R.add(x, x)
                d = R.permute_dims(c, axes=[0, 2, 3, 1])
                e = R.permute_dims(d, axes=[0, 2, 3, 1])
                R.output(e)
            return e

    simplify = tvm.transform.Sequential(
        [RecogniseIdioms(), relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()]
    )
    assert_structural_equal(simplify(Before), simplify(Expected))
    assert simplify(Before).script().count("permute_dims") == 2


def simplified(builder_function, *shapes):
    """Return the text of ``main`` after phase 1; ``builder_function`` takes variables of the shapes."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(builder_function(builder.emit, *params))
        builder.emit_func_output(out)
    return tvm.transform.Sequential(simplify_passes())(builder.get())["main"].script(show_meta=False)


def const(value):
    return relax.const(np.asarray(value, np.float32))


def spelt_out_gelu(emit, x, cubic=0.044715):
    op = relax.op
    inner = op.multiply(op.add(x, op.multiply(op.power(x, const(3.0)), const(cubic))), const((2 / np.pi) ** 0.5))
    return emit(op.multiply(op.multiply(x, const(0.5)), op.add(op.tanh(inner), const(1.0))))


def test_gelu_tanh_is_recognised_by_its_constants():
    assert "R.nn.gelu_tanh(x0)" in simplified(spelt_out_gelu, (2, 8, 16))
    assert "gelu_tanh" not in simplified(lambda emit, x: spelt_out_gelu(emit, x, 0.05), (2, 8, 16))


def test_silu_is_recognised():
    text = simplified(lambda emit, x: emit(relax.op.multiply(x, relax.op.sigmoid(x))), (2, 8, 16))
    assert "R.nn.silu(x0)" in text and "sigmoid" not in text


@pytest.mark.parametrize(("exponent", "recognised"), [(2.0, True), (4.0, False)])
@pytest.mark.parametrize("weight_first", [True, False])
def test_rms_norm_is_recognised(exponent, recognised, weight_first):
    def spelt_out(emit, x, weight):
        op = relax.op
        mean = op.mean(op.power(x, const(exponent)), axis=[-1], keepdims=True)
        normal = op.multiply(x, op.rsqrt(op.add(mean, const(1e-6))))
        return emit(op.multiply(*((weight, normal) if weight_first else (normal, weight))))

    assert ("R.nn.rms_norm(x0, x1, axes=[-1]" in simplified(spelt_out, (2, 8, 16), (16,))) is recognised


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


def test_linears_are_fused_with_bias_and_activation():
    fused = run_phases(TwoLinears, shared_phases())
    names = {str(f.attrs["Composite"]) for _, f in fused.functions_items() if "Composite" in (f.attrs or {})}
    assert names == {"rt3.linear_bias_gelu", "rt3.linear"}


def test_annotation_names_matrix_block_pattern_and_density():
    annotated = AnnotateSparsity(two_linears_context())(run_phases(TwoLinears, shared_phases()))
    attrs = {
        str(f.attrs["rt3.matrix"]): f.attrs
        for _, f in annotated.functions_items()
        if f.attrs and "rt3.matrix" in f.attrs
    }
    first = attrs["first"]
    assert re.fullmatch(r"pattern_linear_f32_v4_r4x\d+_t32_k32", str(first["rt3.kernel"]))
    assert float(first["rt3.density"]) == 0.5
    assert [int(v) for v in first["rt3.block"]] == [32, 64]
    assert [int(v) for v in first["rt3.pattern_shape"]] == [4, 16]
    assert int(first["rt3.group"]) == 4
    assert re.fullmatch(r"dense_linear_f32_r\d+x\d+_t32_k96", str(attrs["second"]["rt3.kernel"]))
    assert "rt3.density" in annotated.script()


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


def test_whole_model_has_transposes_only_at_its_ends(imported, tiny_checkpoint):
    context = VariantContext(1, 1, 16, CPU, imported.parameters, tiny_checkpoint.levels[1].matrices)
    lowered = run_phases(run_phases(imported.mod, shared_phases()), level_phases(context))
    calls = []
    for block in lowered["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and value.op.name == "relax.call_tir":
                calls.append(str(lowered[value.args[0]].attrs[KERNEL_ATTR]))
    # Out: both outputs. In: the first token, which the pooler takes from the output.
    assert calls.count("from_feature_major") == 2 and calls.count("to_feature_major") == 1
    assert calls.count("pattern_linear") == 12 and calls.count("few_token_linear") == 1
    assert calls.count("attention") == 2 and calls.count("layer_norm") == 5
    assert set(calls) <= set(SCHEDULES)


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
    assert relax.get_pipeline("rt3") is not None


def test_transposes_of_einsum_are_those_of_four_axes():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((40, 2, 4, 12), "float32")):
            with R.dataflow():
                a = R.expand_dims(x, axis=[4])
                b = R.permute_dims(a, axes=[1, 2, 0, 4, 3])
                c = R.permute_dims(b, axes=[0, 1, 2, 4, 3])
                d = R.reshape(c, (8, 40, 12))
                R.output(d)
            return d

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((40, 2, 4, 12), "float32")):
            with R.dataflow():
                a = R.permute_dims(x, axes=[1, 2, 0, 3])
                b = R.reshape(a, (8, 40, 12))
                R.output(b)
            return b

    after = tvm.transform.Sequential(simplify_passes())(Before)
    assert_structural_equal(after, tvm.transform.Sequential([relax.transform.Normalize()])(Expected))


def test_a_transpose_that_moves_more_than_units_stays():
    def moved(emit, x):
        return emit(relax.op.permute_dims(x, [1, 0, 2, 3, 4]))

    assert "permute_dims" in simplified(moved, (2, 3, 1, 4, 5))
    assert "permute_dims" not in simplified(moved, (1, 3, 1, 4, 5))
