"""The vector functions against float64, over their whole range."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from tvm import te
from tvm.script import tirx as T

from rt3_tvm.schedules import vector_math
from tests.kernels.harness import run_kernel

X = np.concatenate([np.linspace(-90, 90, 200001), np.linspace(-6, 6, 200001), [0.0, -0.0]]).astype(np.float32)
X = np.resize(X, -(-len(X) // 16) * 16)


def apply(name: str, **options) -> np.ndarray:
    x = te.placeholder(X.shape, "float32", name="x")
    y = te.compute(X.shape, lambda i: getattr(vector_math, name)(x[i], **options), name="y")
    out = np.zeros_like(X)
    run_kernel("elementwise", te.create_prim_func([x, y]), X, out)
    return out.astype(np.float64)


def apply_to_vectors(function, x: np.ndarray) -> np.ndarray:
    lanes = vector_math.AVX512_LANES
    count = len(x) // lanes

    @T.prim_func(s_tir=True)
    def apply(a: T.handle, b: T.handle) -> None:
        A = T.match_buffer(a, (count * lanes,), "float32")
        B = T.match_buffer(b, (count * lanes,), "float32")
        for i in range(count):
            B[T.Ramp(i * lanes, 1, lanes)] = function(A[T.Ramp(i * lanes, 1, lanes)])

    out = np.zeros_like(x)
    run_kernel("quantise", apply, x, out)
    return out.astype(np.float64)


def test_exp_relative_error():
    inside = (X > vector_math.EXP_MIN) & (X < vector_math.EXP_MAX)
    want = np.exp(X.astype(np.float64))
    assert (np.abs(apply("exp") - want) / want)[inside].max() < 3e-7


NUMPY = [
    ("erf", np.vectorize(math.erf), 5e-7),
    ("tanh", np.tanh, 3e-7),
    ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), 3e-7),
    ("relu", lambda x: np.maximum(x, 0), 0.0),
    ("identity", lambda x: x, 0.0),
]


@pytest.mark.parametrize(("name", "want", "bound"), NUMPY)
def test_absolute_error(name, want, bound):
    assert np.abs(apply(name) - want(X.astype(np.float64))).max() <= bound


COPIES = vector_math.VectorUnit(in_place=True)
TORCH = [
    ("gelu", {}, torch.nn.functional.gelu, 4e-7),
    ("gelu", {"unit": COPIES}, torch.nn.functional.gelu, 4e-7),
    ("gelu_tanh", {}, partial(torch.nn.functional.gelu, approximate="tanh"), 5e-7),
    ("silu", {}, torch.nn.functional.silu, 5e-7),
]


@pytest.mark.parametrize(("name", "options", "want", "bound"), TORCH)
def test_activation_against_torch(name, options, want, bound):
    x = torch.from_numpy(X.astype(np.float64))
    error = np.abs(apply(name, **options) - want(x).numpy()) / np.maximum(1.0, np.abs(X))
    assert error.max() < bound


def test_gelu_of_vectors():
    x = np.concatenate([X, [-np.inf, -1e30, 1e30, np.inf] * 4])
    y = apply_to_vectors(vector_math.gelu_of_vector, x.astype(np.float32))
    want = torch.nn.functional.gelu(torch.from_numpy(X.astype(np.float64))).numpy()
    assert (np.abs(y[: len(X)] - want) / np.maximum(1.0, np.abs(X))).max() < 4e-7
    assert np.abs(y[len(X) :: 4]).max() < 2e-6 and (y[-2::4] == np.float32(1e30)).all() and (y[-1::4] == np.inf).all()
    nothing = np.full(16, np.nan, np.float32)
    assert np.isnan(apply_to_vectors(vector_math.gelu_of_vector, nothing)).all()


def test_powers_of_vectors():
    x = np.concatenate([np.linspace(-160, 0, 200_000), np.linspace(-1, 0, 100_000), [-0.0, -1e-9, -1e9, -3e38] * 4])
    x = x[-(len(x) // 16 * 16) :].astype(np.float32)
    y, want = apply_to_vectors(vector_math.power_of_vector, x), np.exp2(x.astype(np.float64))
    normal = x > -126
    assert np.abs(y[normal] / want[normal] - 1).max() < 2e-7
    assert np.abs(y - want).max() < 2e-7 and (y[x < -151] == 0).all()


def test_every_activation_has_a_test():
    assert {f.__name__ for f in vector_math.ACTIVATIONS.values()} <= {name for name, *_ in (*NUMPY, *TORCH)}


UNITS = [vector_math.VectorUnit(rounds, saturates) for rounds in (False, True) for saturates in (False, True)]


@pytest.mark.parametrize("unit", UNITS, ids=str)
@pytest.mark.parametrize("largest", [0.0, 0.4, -57.0, 1000.25, 3e5])
def test_weights_of_a_softmax(unit, largest):
    """2**(score - largest) but for one factor, which is the same for all; exactly 0 far below the largest."""
    below = np.concatenate([np.linspace(-140, 0, 100_000), [-1e5, -1e9, -3e38, -200, -129, -0.5, 0.0]])
    scores = (largest + np.resize(below, -(-len(below) // 16) * 16)).astype(np.float32)
    x = te.placeholder(scores.shape, "float32", name="x")
    base = te.compute(scores.shape, lambda i: vector_math.largest_power(x[i] * 0.0 + np.float32(largest), unit))
    y = te.compute(scores.shape, lambda i: vector_math.softmax_weight(x[i], base[i], unit))
    out = np.zeros_like(scores)
    run_kernel("elementwise", te.create_prim_func([x, y]), scores, out)
    exponent = scores.astype(np.float64) - np.round(np.float64(np.float32(largest)))
    want = np.exp2(np.maximum(exponent, -1000.0)) * vector_math.POWER_FACTOR
    shown = exponent > -vector_math.BIAS_OF_POWERS + 1.5
    assert np.abs(out[shown] / want[shown] - 1).max() < 6e-7
    assert (out[exponent < -vector_math.BIAS_OF_POWERS - 0.5] == 0).all() and np.isfinite(out).all()


@pytest.mark.parametrize("unit", UNITS, ids=str)
@pytest.mark.parametrize("largest", [0.0, 0.4, -57.0, 1000.25])
def test_weights_that_are_rounded_to_float16(unit, largest):
    below = np.concatenate([np.linspace(-140, 0, 100_000), [-1e5, -1e9, -3e38, -200, -129, -0.5, 0.0]])
    scores = (largest + np.resize(below, -(-len(below) // 16) * 16)).astype(np.float32)
    x = te.placeholder(scores.shape, "float32", name="x")
    base = te.compute(scores.shape, lambda i: vector_math.coarse_base(x[i] * 0.0 + np.float32(largest), unit))
    y = te.compute(scores.shape, lambda i: vector_math.coarse_weight(x[i], base[i], unit))
    out = np.zeros_like(scores)
    run_kernel("elementwise", te.create_prim_func([x, y]), scores, out)
    exponent = scores.astype(np.float64) - np.round(np.float64(np.float32(largest)))
    want = np.exp2(np.maximum(exponent, -1000.0)) * vector_math.CUBIC_FACTOR
    shown = exponent > -121
    # CUBIC_FACTOR is what the cubic gives at 0: the middle of its errors lies beside it.
    assert np.abs(out[shown] / want[shown] - 1).max() < 1.5e-4
    ratio = out[shown] / want[shown]
    assert (ratio.max() - ratio.min()) / 2 < 8e-5 and 0.9 < out.max() < 1.7
    assert (out[exponent < -124] == 0).all() and np.isfinite(out).all()
