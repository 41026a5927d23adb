"""One plan for a linear layer: whoever asks gets the same, and it can be written down and read back."""

import numpy as np
import pytest
from tvm import relax

from rt3_tvm import model as models
from rt3_tvm.bench.linear_kernel import LinearCase, LinearKernel
from rt3_tvm.frontend import import_model
from rt3_tvm.pattern import PatternRecipe, PatternShape, cut_backbone, cut_patterns
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.linear_plan import LinearPlan, MatrixShape, TokenCount, plan_linear
from rt3_tvm.transform.annotate_sparsity import AnnotateSparsity
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.linear_annotation import LinearAnnotation
from rt3_tvm.transform.pipeline import run_phases, shared_phases
from tests.kernels.harness import CPU

CPUS = [CpuShape(16, 16, 32768), CpuShape(16, 32, 65536), CpuShape(32, 16, 32768), CpuShape(64, 32, 49152)]
MATRICES = [MatrixShape(768, 3072, 768, 4), MatrixShape(768, 768, 96, 1), MatrixShape.dense_of(500, 48)]
THIRTEEN_TILES = 13 * 16


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("tokens", [TokenCount(1, 1), TokenCount(1, 20), TokenCount(2, 128), TokenCount(1, 208)])
def test_a_plan_is_read_back_from_attributes(cpu, matrix, tokens):
    plan = plan_linear(cpu, matrix, tokens)
    func = relax.Function([], relax.Tuple([]), ret_ty=None).with_attr("rt3.plan", plan.to_attrs())
    assert LinearPlan.of(func.attrs["rt3.plan"]) == plan


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize(("rows", "cols"), [(16, 27), (256, 9), (5, 1)])
def test_so_few_columns_that_an_iteration_has_to_be_filled_up(cpu, rows, cols):
    """A convolution of three channels, or along a sequence of one."""
    plan = plan_linear(cpu, MatrixShape.dense_of(rows, cols), TokenCount(1, 64))
    assert all(part.shape.kept >= cols for part in plan.parts)


def test_its_text_names_the_kernel():
    plan = plan_linear(CpuShape(64, 32, 49152), MatrixShape(768, 3072, 768, 4), TokenCount(1, 128))
    (part,) = plan.parts
    assert str(plan) == f"pattern_linear_f32_v4_r{plan.packing.rows}x{part.decisions.vectors}_t128_k768"


def test_a_matrix_that_is_hardly_sparse_is_planned_dense():
    plan = plan_linear(CPU, MatrixShape(768, 768, 730, 1), TokenCount(1, 128))
    assert plan.matrix == MatrixShape.dense_of(768, 768) and plan.family == "dense_linear"


@pytest.mark.parametrize("group", [0, 4])
@pytest.mark.parametrize("length", [1, 20, THIRTEEN_TILES])
def test_the_benchmark_times_what_the_compiler_builds(tmp_path, group, length):
    """The first layer of a small encoder, by both ways; 13 tiles are two kernels."""
    model = models.build(
        models.describe(models.load("random-tiny")) | {"config": _longer(models.load("random-tiny").config.to_dict())}
    )
    imported = import_model(model, 1, length)
    name = "encoder.layer.0.intermediate.dense.weight"
    weight = model.state_dict()[name].numpy()
    rows, cols = weight.shape
    case = LinearCase(rows, cols, length, 0.5, group)
    matrices, columns = {}, np.arange(cols, dtype=np.int32)[None]
    valid = np.ones_like(columns, dtype=np.bool_)
    if group:
        recipe = PatternRecipe(PatternShape(group, cols, group), 8)
        matrix = cut_patterns(weight, cut_backbone(weight, 0.0, rows), recipe, 0.5)
        matrices, (columns, valid) = {name: matrix}, matrix.group_columns()
    context = VariantContext(0, 1, length, CPU, imported.parameters, matrices)
    annotated = AnnotateSparsity(context)(run_phases(imported.mod, shared_phases()))
    found = [LinearAnnotation.of(f.attrs) for _, f in annotated.functions_items() if isinstance(f, relax.Function)]
    (compiled,) = {a.plan for a in found if a is not None and a.matrix == name}
    x, bias = np.zeros((length, cols), np.float32), np.zeros(rows, np.float32)
    timed = LinearKernel(case, columns, valid, weight, bias, x, tmp_path).plan
    assert timed == compiled


def test_thirteen_tiles_are_two_kernels():
    plan = plan_linear(CpuShape(64, 32, 49152), MatrixShape.dense_of(768, 768), TokenCount(1, THIRTEEN_TILES))
    assert [(p.shape.first, p.shape.tiles) for p in plan.parts] == [(0, 12), (12, 1)]


def _longer(config: dict) -> dict:
    return config | {"max_position_embeddings": THIRTEEN_TILES}
