"""What models spell out as attention becomes one function, and what is no attention does not; numbers stay what they were."""

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from rt3_tvm.schedules import KERNEL_ATTR
from rt3_tvm.schedules.attention_mask import StaticMask
from rt3_tvm.transform.composites import ATTENTION
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.pipeline import level_phases, run_phases, shared_phases
from tests.kernels.harness import CLUSTER, CPU

MIN = float(np.finfo(np.float32).min)
B, H, T, D = 2, 3, 20, 8
HEADS = (B, H, T, D)
op = relax.op


def const(value):
    return relax.const(np.asarray(value, np.float32))


def module(spelt_out, *shapes):
    """Return a module whose ``main`` is ``spelt_out(emit, *variables)``; a shape that ends in "bool" is a mask."""
    builder = relax.BlockBuilder()
    params = [
        relax.Var(f"x{i}", relax.TensorType(s[:-1], "bool") if s[-1] == "bool" else relax.TensorType(s, "float32"))
        for i, s in enumerate(shapes)
    ]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(relax.Tuple([spelt_out(builder.emit, *params)]))
        builder.emit_func_output(out)
    mod = builder.get()
    mod["main"] = mod["main"].with_attr("num_input", len(params))
    return mod


def fused(mod):
    """Return the attention functions after phase 2, and how many softmaxes are left in ``main``."""
    after = run_phases(mod, shared_phases())
    functions = [f for _, f in after.functions_items() if f.attrs and f.attrs.get("Composite") == ATTENTION]
    return functions, after["main"].script(show_meta=False).count("R.nn.softmax")


def evaluate(mod, inputs):
    """Run a module by TVM's virtual machine, which wants kernels without symbols of their own.

    They may use instructions of this CPU.
    """
    private = {
        v: f.without_attr("global_symbol") if isinstance(f, tirx.PrimFunc) else f for v, f in mod.functions_items()
    }
    mod = tvm.IRModule(private)
    machine = relax.VirtualMachine(relax.build(mod, tvm.target.Target(CLUSTER.target_dict())), tvm.cpu())
    return machine["main"](*(tvm.runtime.tensor(x) for x in inputs))[0].numpy()


def check(mod, recognised):
    """Compare a module before and after all phases, and return the attention function."""
    rng = np.random.default_rng(0)
    inputs = []
    for param in mod["main"].params:
        shape = [int(d) for d in param.ty.shape]
        if str(param.ty.dtype) == "bool":
            shown = rng.random(shape) < 0.6
            shown[..., 0] = True
            inputs.append(shown)
        else:
            inputs.append(rng.standard_normal(shape).astype(np.float32))
    functions, left = fused(mod)
    assert (len(functions), left) == ((1, 0) if recognised else (0, 1))
    context = VariantContext(0, B, T, CPU, {}, {})
    lowered = run_phases(run_phases(mod, shared_phases()), level_phases(context))
    families = {str(f.attrs[KERNEL_ATTR]) for _, f in lowered.functions_items() if KERNEL_ATTR in (f.attrs or {})}
    assert ("attention" in families) is recognised
    np.testing.assert_allclose(evaluate(lowered, inputs), evaluate(mod, inputs), atol=2e-6, rtol=0)
    return functions[0] if functions else None


def scores(q, k):
    return op.matmul(q, op.permute_dims(k, [0, 1, 3, 2]))


def softmax(x):
    return op.nn.softmax(x, axis=-1)


TRIANGLE = np.triu(np.full((1, 1, T, T), MIN, np.float32), 1)
SLOPES = (np.arange(T) - np.arange(T)[:, None])[None] * np.array([0.5, 0.25, 0.125])[:, None, None]
BLOCKED = np.arange(T)[:, None] // 6 != np.arange(T) // 6


def plain(emit, q, k, v):
    return emit(op.matmul(softmax(scores(q, k)), v))


def scaled_by_division_under_two_masks(emit, q, k, v, scores_bias, keys):
    x = op.divide(scores(q, k), const(4.0))
    return emit(op.matmul(softmax(op.add(keys, op.add(x, scores_bias))), v))


def scaled_operands(emit, q, k, v):
    k = op.permute_dims(op.multiply(const(0.5), k), [0, 1, 3, 2])
    return emit(op.matmul(softmax(op.matmul(op.divide(q, const(3.0)), k)), v))


def soft_cap_then_triangle(emit, q, k, v):
    x = op.multiply(op.tanh(op.divide(op.multiply(scores(q, k), const(0.3)), const(5.0))), const(5.0))
    return emit(op.matmul(softmax(op.add(x, const(TRIANGLE))), v))


def scaled_after_a_bias(emit, q, k, v, bias):
    return emit(op.matmul(softmax(op.multiply(op.subtract(scores(q, k), bias), const(0.3))), v))


def hidden_by_constants(emit, q, k, v, keys):
    x = op.where(relax.const(TRIANGLE == 0), scores(q, k), const(MIN))
    return emit(op.matmul(softmax(op.add(x, emit(op.where(keys, const(0.0), const(MIN))))), v))


def hidden_by_a_run_time_mask(emit, q, k, v, hidden):
    x = op.where(op.logical_not(hidden), const(-np.inf), scores(q, k))
    return emit(op.matmul(softmax(op.maximum(x, const(MIN))), v))


def mask_of_triangle_and_keys(emit, q, k, v, keys):
    mask = op.logical_and(relax.const(TRIANGLE == 0), keys)
    return emit(op.matmul(softmax(op.add(scores(q, k), op.where(mask, const(0.0), const(MIN)))), v))


def minimum_of_keys_and_triangle(emit, q, k, v, keys):
    return emit(op.matmul(softmax(op.add(scores(q, k), op.minimum(keys, const(TRIANGLE)))), v))


def alibi(emit, q, k, v):
    return emit(op.matmul(softmax(op.add(scores(q, k), const(SLOPES[None] + TRIANGLE))), v))


def chunks(emit, q, k, v):
    return emit(op.matmul(softmax(op.where(relax.const(BLOCKED), const(MIN), scores(q, k))), v))


def heads_beside_the_batch(emit, q, k, v, bias):
    q, k, v = (emit(op.reshape(x, (B * H, T, D))) for x in (q, k, v))
    x = op.add(bias, op.multiply(op.matmul(q, op.permute_dims(k, [0, 2, 1])), const(0.4)))
    x = op.add(op.reshape(x, (B, H, T, T)), const(TRIANGLE))
    weights = op.reshape(softmax(x), (B * H, T, T))
    return emit(op.reshape(op.matmul(weights, v), (B, H, T, D)))


def transposed_keys(emit, q, k, v):
    return emit(op.matmul(softmax(op.matmul(q, k)), v))


def grouped(emit, q, k, v):
    def repeated(x):
        return op.reshape(op.broadcast_to(op.expand_dims(x, 2), (B, 2, 2, T, D)), (B, 4, T, D))

    return emit(op.matmul(softmax(scores(q, emit(repeated(k)))), emit(repeated(v))))


def casts_that_do_nothing(emit, q, k, v):
    weights = op.astype(softmax(op.astype(scores(q, k), "float32")), "float32")
    return emit(op.matmul(weights, v))


def relax_operator(emit, q, k, v, bias):
    return emit(op.nn.attention(q, k, v, bias, scale=0.3, causal_mask="TopLeft"))


RECOGNISED = [
    (plain, [HEADS] * 3),
    (scaled_by_division_under_two_masks, [HEADS] * 3 + [(B, H, T, T), (B, 1, 1, T)]),
    (scaled_operands, [HEADS] * 3),
    (soft_cap_then_triangle, [HEADS] * 3),
    (scaled_after_a_bias, [HEADS] * 3 + [(1, H, T, T)]),
    (hidden_by_constants, [HEADS] * 3 + [(B, 1, 1, T, "bool")]),
    (hidden_by_a_run_time_mask, [HEADS] * 3 + [(B, 1, T, T, "bool")]),
    (mask_of_triangle_and_keys, [HEADS] * 3 + [(B, 1, 1, T, "bool")]),
    (minimum_of_keys_and_triangle, [HEADS] * 3 + [(B, 1, 1, T)]),
    (alibi, [HEADS] * 3),
    (chunks, [HEADS] * 3),
    (heads_beside_the_batch, [HEADS] * 3 + [(B * H, 1, T)]),
    (transposed_keys, [HEADS, (B, H, D, T), (B, H, T, 12)]),
    (grouped, [(B, 4, T, D), (B, 2, T, D), (B, 2, T, D)]),
    (casts_that_do_nothing, [HEADS] * 3),
    (relax_operator, [(B, T, H, D)] * 3 + [(B, 1, 1, T)]),
]


@pytest.mark.parametrize(("spelt_out", "shapes"), RECOGNISED, ids=lambda x: getattr(x, "__name__", ""))
def test_attention_is_recognised(spelt_out, shapes):
    check(module(spelt_out, *shapes), recognised=True)


def tanh_of_another_form(emit, q, k, v):
    return emit(op.matmul(softmax(op.tanh(op.add(scores(q, k), const(1.0)))), v))


def a_softmax_over_queries(emit, q, k, v):
    return emit(op.matmul(op.nn.softmax(scores(q, k), axis=2), v))


def a_mask_after_the_softmax(emit, q, k, v):
    return emit(op.matmul(op.where(relax.const(BLOCKED), const(0.0), softmax(scores(q, k))), v))


def a_head_mask(emit, q, k, v, heads):
    return emit(op.matmul(op.multiply(softmax(scores(q, k)), heads), v))


def weights_used_elsewhere(emit, q, k, v):
    weights = emit(softmax(scores(q, k)))
    return emit(op.add(op.matmul(weights, v), op.sum(weights, axis=[3], keepdims=True)))


def weights_on_the_right(emit, q, k, v):
    return emit(op.matmul(op.permute_dims(v, [0, 1, 3, 2]), softmax(scores(q, k))))


def a_value_that_does_not_hide(emit, q, k, v):
    return emit(op.matmul(softmax(op.where(relax.const(BLOCKED), const(-5.0), scores(q, k))), v))


def scores_of_no_product(emit, q, k, v):
    return emit(op.matmul(softmax(op.subtract(q, k)), v))


def weights_in_another_order(emit, q, k, v):
    weights = op.reshape(softmax(scores(q, k)), (B, H, T * T // 10, 10))
    return emit(op.matmul(weights, v))


GENERIC = [
    (tanh_of_another_form, [HEADS] * 3),
    (a_softmax_over_queries, [HEADS] * 3),
    (a_mask_after_the_softmax, [HEADS] * 3),
    (a_head_mask, [HEADS] * 3 + [(1, H, 1, 1)]),
    (weights_used_elsewhere, [HEADS] * 3),
    (weights_on_the_right, [HEADS] * 3),
    (a_value_that_does_not_hide, [HEADS] * 3),
    (scores_of_no_product, [HEADS, HEADS, (B, H, D, 5)]),
    (weights_in_another_order, [HEADS, HEADS, (B, H, 10, 4)]),
]


@pytest.mark.parametrize(("spelt_out", "shapes"), GENERIC, ids=lambda x: getattr(x, "__name__", ""))
def test_what_is_no_attention_stays_generic_and_right(spelt_out, shapes):
    check(module(spelt_out, *shapes), recognised=False)


def mask_of(spelt_out, *shapes):
    functions, _ = fused(module(spelt_out, *shapes))
    (function,) = functions
    roles = [p.name for p in function.params]
    return StaticMask.of(function.attrs["rt3.mask"]) if "rt3.mask" in function.attrs else None, roles


@pytest.mark.parametrize(
    ("spelt_out", "shapes"),
    [
        (hidden_by_constants, [HEADS] * 3 + [(B, 1, 1, T, "bool")]),
        (mask_of_triangle_and_keys, [HEADS] * 3 + [(B, 1, 1, T, "bool")]),
        (minimum_of_keys_and_triangle, [HEADS] * 3 + [(B, 1, 1, T)]),
        (relax_operator, [(B, T, H, D)] * 3 + [(B, 1, 1, T)]),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_triangle_needs_no_table(spelt_out, shapes):
    assert mask_of(spelt_out, *shapes) == (StaticMask.band(T, T, None, 0), ["q", "k", "v", "key_bias"])


def test_constants_that_are_no_band_are_a_bias_with_tiles():
    mask, roles = mask_of(alibi, *[HEADS] * 3)
    assert mask == StaticMask(StaticMask.band(T, T, None, 0).tiles) and roles == ["q", "k", "v", "score_bias"]
    assert mask_of(chunks, *[HEADS] * 3) == (StaticMask(((0, 2), (0, 2))), ["q", "k", "v", "score_bias"])
