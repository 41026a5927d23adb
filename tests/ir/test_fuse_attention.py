"""Attention becomes one function that says what it means; what is none of it is left to its operators."""

import numpy as np
import pytest
from tvm import relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from rt3_tvm.transform.fuse_attention import FuseAttention
from tests.ir.before_after import applied, check_unchanged

PASSES = [FuseAttention(), relax.transform.DeadCodeElimination(["main"])]
TRIANGLE = relax.const(np.triu(np.full((4, 4), np.finfo(np.float32).min, np.float32), 1))


def test_scaled_capped_and_biased_scores():
    @I.ir_module
    class Before:
        @R.function
        def main(
            q: R.Tensor((1, 2, 4, 8), "float32"),
            k: R.Tensor((1, 2, 4, 8), "float32"),
            v: R.Tensor((1, 2, 4, 8), "float32"),
            m: R.Tensor((1, 1, 1, 4), "float32"),
        ):
            with R.dataflow():
                kt = R.permute_dims(k, axes=[0, 1, 3, 2])
                s = R.matmul(q, kt)
                d = R.divide(s, R.const(4.0, "float32"))
                t = R.tanh(d)
                c = R.multiply(t, R.const(2.0, "float32"))
                a = R.add(m, c)
                w = R.nn.softmax(a, axis=-1)
                y = R.matmul(w, v)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(
            q: R.Tensor((1, 2, 4, 8), "float32"),
            k: R.Tensor((1, 2, 4, 8), "float32"),
            v: R.Tensor((1, 2, 4, 8), "float32"),
            m: R.Tensor((1, 1, 1, 4), "float32"),
        ) -> R.Tensor((1, 2, 4, 8), "float32"):
            cls = Expected
            with R.dataflow():
                y: R.Tensor((1, 2, 4, 8), "float32") = cls.attention(q, k, v, m)
                R.output(y)
            return y

        @R.function(private=True)
        def attention(
            q: R.Tensor((1, 2, 4, 8), "float32"),
            k: R.Tensor((1, 2, 4, 8), "float32"),
            v: R.Tensor((1, 2, 4, 8), "float32"),
            key_bias: R.Tensor((1, 1, 1, 4), "float32"),
        ) -> R.Tensor((1, 2, 4, 8), "float32"):
            R.func_attr({"Composite": "rt3.attention", "rt3.scale": 0.5, "rt3.soft_cap": 2.0})
            with R.dataflow():
                kt = R.permute_dims(k, axes=[0, 1, 3, 2])
                s = R.matmul(q, kt)
                d = R.multiply(s, R.const(0.25, "float32"))
                t = R.tanh(d)
                c = R.multiply(t, R.const(2.0, "float32"))
                a = R.add(c, key_bias)
                w = R.nn.softmax(a, axis=-1)
                y = R.matmul(w, v)
                R.output(y)
            return y

    assert_structural_equal(applied(PASSES, Before), Expected)


def test_heads_that_share_keys_under_a_triangle():
    @I.ir_module
    class Before:
        @R.function
        def main(
            q: R.Tensor((1, 4, 4, 8), "float32"),
            k: R.Tensor((1, 2, 4, 8), "float32"),
            v: R.Tensor((1, 2, 4, 8), "float32"),
        ):
            with R.dataflow():
                k_groups = R.expand_dims(k, axis=[2])
                k_spread = R.broadcast_to(k_groups, (1, 2, 2, 4, 8))
                k_heads = R.reshape(k_spread, (1, 4, 4, 8))
                v_groups = R.expand_dims(v, axis=[2])
                v_spread = R.broadcast_to(v_groups, (1, 2, 2, 4, 8))
                v_heads = R.reshape(v_spread, (1, 4, 4, 8))
                kt = R.permute_dims(k_heads, axes=[0, 1, 3, 2])
                s = R.matmul(q, kt)
                scaled = R.multiply(s, R.const(0.5, "float32"))
                masked = R.add(scaled, TRIANGLE)
                w = R.nn.softmax(masked, axis=-1)
                y = R.matmul(w, v_heads)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(
            q: R.Tensor((1, 4, 4, 8), "float32"),
            k: R.Tensor((1, 2, 4, 8), "float32"),
            v: R.Tensor((1, 2, 4, 8), "float32"),
        ):
            cls = Expected
            with R.dataflow():
                y = cls.attention(q, k, v)
                R.output(y)
            return y

        @R.function(private=True)
        def attention(
            q: R.Tensor((1, 4, 4, 8), "float32"),
            k: R.Tensor((1, 2, 4, 8), "float32"),
            v: R.Tensor((1, 2, 4, 8), "float32"),
        ) -> R.Tensor((1, 4, 4, 8), "float32"):
            R.func_attr(
                {
                    "Composite": "rt3.attention",
                    "rt3.scale": 0.5,
                    "rt3.soft_cap": 0.0,
                    "rt3.mask": {"right": 0, "tiles": [[0, 1]]},
                }
            )
            with R.dataflow():
                k_heads = R.repeat(k, repeats=2, axis=1)
                v_heads = R.repeat(v, repeats=2, axis=1)
                kt = R.permute_dims(k_heads, axes=[0, 1, 3, 2])
                s = R.matmul(q, kt)
                scaled = R.multiply(s, R.const(0.5, "float32"))
                masked = R.add(scaled, TRIANGLE)
                w = R.nn.softmax(masked, axis=-1)
                y = R.matmul(w, v_heads)
                R.output(y)
            return y

    assert_structural_equal(applied(PASSES, Before), Expected)


def test_a_run_time_mask_is_a_bias_of_keys_or_of_scores():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 2, 4, 8), "float32"),
            keys: R.Tensor((1, 1, 1, 4), "bool"),
            s: R.Tensor((1, 2, 4, 4), "float32"),
        ):
            with R.dataflow():
                xt = R.permute_dims(x, axes=[0, 1, 3, 2])
                a = R.matmul(x, xt)
                b = R.where(keys, a, R.const(-1e38, "float32"))
                c = R.subtract(b, s)
                w = R.nn.softmax(c, axis=3)
                y = R.matmul(w, x)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((1, 2, 4, 8), "float32"),
            keys: R.Tensor((1, 1, 1, 4), "bool"),
            s: R.Tensor((1, 2, 4, 4), "float32"),
        ):
            cls = Expected
            with R.dataflow():
                score_bias = R.multiply(s, R.const(-1.0, "float32"))
                key_bias = R.where(keys, R.const(0.0, "float32"), R.const(-3.4028234663852886e38, "float32"))
                y = cls.attention(x, x, x, key_bias, score_bias)
                R.output(y)
            return y

        @R.function(private=True)
        def attention(
            q: R.Tensor((1, 2, 4, 8), "float32"),
            k: R.Tensor((1, 2, 4, 8), "float32"),
            v: R.Tensor((1, 2, 4, 8), "float32"),
            key_bias: R.Tensor((1, 1, 1, 4), "float32"),
            score_bias: R.Tensor((1, 2, 4, 4), "float32"),
        ) -> R.Tensor((1, 2, 4, 8), "float32"):
            R.func_attr({"Composite": "rt3.attention", "rt3.scale": 1.0, "rt3.soft_cap": 0.0})
            with R.dataflow():
                kt = R.permute_dims(k, axes=[0, 1, 3, 2])
                a = R.matmul(q, kt)
                b = R.multiply(a, R.const(1.0, "float32"))
                c = R.add(b, key_bias)
                d = R.add(c, score_bias)
                w = R.nn.softmax(d, axis=-1)
                y = R.matmul(w, v)
                R.output(y)
            return y

    assert_structural_equal(applied(PASSES, Before), Expected)


@I.ir_module
class SoftmaxOverQueries:
    @R.function
    def main(x: R.Tensor((1, 2, 4, 8), "float32")):
        with R.dataflow():
            xt = R.permute_dims(x, axes=[0, 1, 3, 2])
            s = R.matmul(x, xt)
            w = R.nn.softmax(s, axis=2)
            y = R.matmul(w, x)
            R.output(y)
        return y


@I.ir_module
class WeightsThatLeave:
    @R.function
    def main(x: R.Tensor((1, 2, 4, 8), "float32")):
        with R.dataflow():
            xt = R.permute_dims(x, axes=[0, 1, 3, 2])
            s = R.matmul(x, xt)
            w = R.nn.softmax(s, axis=-1)
            y = R.matmul(w, x)
            out = (y, w)
            R.output(out)
        return out


@pytest.mark.parametrize("mod", [SoftmaxOverQueries, WeightsThatLeave])
def test_what_is_no_attention_stays(mod):
    check_unchanged(PASSES, mod)
