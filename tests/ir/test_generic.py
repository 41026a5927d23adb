"""Operators without a family: scheduled as elementwise, right whatever their shapes."""

import numpy as np
import pytest
from tvm import relax, tirx

from rt3_tvm.schedules import KERNEL_ATTR
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.pipeline import level_phases, run_phases, shared_phases
from tests.ir.test_attention import evaluate, module
from tests.kernels.harness import CPU

op = relax.op


def indices(*values):
    return relax.const(np.array(values, np.int64))


CASES = {
    "sum over two axes": (lambda x: op.sum(x, axis=[0, 2]), [(3, 16, 5)]),
    "mean over the first axis": (lambda x: op.mean(x, axis=[0], keepdims=True), [(7, 32)]),
    "variance": (lambda x: op.variance(x, axis=[1]), [(4, 33, 16)]),
    "maximum over all": (op.max, [(5, 7, 3)]),
    "softmax over the middle": (lambda x: op.nn.softmax(x, axis=1), [(2, 9, 16)]),
    "softmax over an odd axis": (lambda x: op.nn.softmax(op.multiply(x, x), axis=-1), [(2, 3, 17)]),
    "log softmax": (lambda x: op.nn.log_softmax(x, axis=-1), [(6, 19)]),
    "concat of twenty": (lambda *x: op.concat(list(x), axis=1), [(3, i % 3 + 1) for i in range(20)]),
    "concat with nothing": (lambda *x: op.concat(list(x), axis=-1), [(2, 4, 16), (2, 4, 0)]),
    "strided slice": (lambda x: op.strided_slice(x, [1, 2], [9, 1], [0, 16], [-2, 3]), [(2, 10, 16)]),
    "flip": (lambda x: op.flip(x, axis=1), [(2, 16)]),
    "pad": (lambda x: op.nn.pad(x, [0, 0, 1, 2, 3, 0]), [(2, 5, 16)]),
    "transpose": (lambda x: op.permute_dims(x, [2, 0, 3, 1]), [(2, 3, 16, 5)]),
    "take along the last axis": (lambda x: op.take(x, indices(4, 0, 16, 3), axis=-1), [(2, 17)]),
    "gather": (lambda x: op.gather_elements(x, indices([0, 4, 4], [1, 0, 2]), axis=1), [(2, 5)]),
    "repeat": (lambda x: op.repeat(x, 3, axis=1), [(2, 4, 16)]),
    "tile": (lambda x: op.tile(x, (2, 1, 3)), [(1, 4, 8)]),
    "stack": (lambda x, y: op.stack([x, y], axis=2), [(3, 16), (3, 16)]),
    "one element": (lambda x: op.add(x, x), [(1, 1)]),
    "no axes": (lambda x: op.exp(op.sum(x)), [(4,)]),
    "product of a vector": (op.matmul, [(16,), (3, 16, 8)]),
    "product broadcast in pieces": (op.matmul, [(2, 1, 4, 5, 8), (2, 3, 4, 8, 6)]),
    "product of many shapes": (op.matmul, [(2, 1, 5, 8), (3, 8, 33)]),
    "product with a product": (lambda x, y, z: op.matmul(x, op.matmul(y, z)), [(3, 16), (16, 8), (8, 24)]),
    "product scaled": (lambda x, y: op.multiply(op.matmul(x, y), op.matmul(x, y)), [(2, 150, 8), (2, 8, 200)]),
}


def test_layer_norm_of_two_axes_has_its_kernel():
    def normalised(emit, x, gamma, beta):
        return emit(op.nn.layer_norm(x, gamma, beta, axes=[-1]))

    mod, rng = module(normalised, (37, 24), (24,), (24,)), np.random.default_rng(0)
    inputs = [rng.standard_normal(s).astype(np.float32) for s in ((37, 24), (24,), (24,))]
    lowered = run_phases(run_phases(mod, shared_phases()), level_phases(VariantContext(0, 1, 37, CPU, {}, {})))
    assert "layer_norm" in {str(f.attrs.get(KERNEL_ATTR, "")) for _, f in lowered.functions_items()}
    np.testing.assert_allclose(evaluate(lowered, inputs), evaluate(mod, inputs), atol=1e-5, rtol=0)


def test_a_pair_that_nothing_took_apart_is_its_parts():
    def one_of_a_pair(emit, x, y):
        return emit(op.exp(emit(relax.TupleGetItem(emit(relax.Tuple([x, y])), 1))))

    mod, rng = module(one_of_a_pair, (3, 16), (3, 16)), np.random.default_rng(0)
    inputs = [rng.standard_normal((3, 16)).astype(np.float32) for _ in range(2)]
    lowered = run_phases(mod, level_phases(VariantContext(0, 1, 3, CPU, {}, {})))
    np.testing.assert_allclose(evaluate(lowered, inputs), np.exp(inputs[1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_generic_operators(name):
    function, shapes = CASES[name]
    mod, rng = module(lambda emit, *x: emit(function(*x)), *shapes), np.random.default_rng(0)
    inputs = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    context = VariantContext(0, 1, 1, CPU, {}, {})
    lowered = run_phases(run_phases(mod, shared_phases()), level_phases(context))
    assert all(KERNEL_ATTR in f.attrs for _, f in lowered.functions_items() if isinstance(f, tirx.PrimFunc))
    np.testing.assert_allclose(evaluate(lowered, inputs), evaluate(mod, inputs), atol=1e-5, rtol=1e-5)
