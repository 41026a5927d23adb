"""``main`` is rebuilt with kernels on the feature-major layout."""

import numpy as np
from tvm import relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from rt3_tvm.schedules import border
from rt3_tvm.schedules.attention import attention_of
from rt3_tvm.schedules.attention_shape import AttentionShape
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layer_norm import NormShape, layer_norm
from rt3_tvm.schedules.layout import FEATURE_MAJOR
from rt3_tvm.schedules.linear_decisions import LinearDecisions, LinearPacking, LinearShape, MatrixShape
from rt3_tvm.schedules.linear_plan import LinearPart, LinearPlan, TokenCount
from rt3_tvm.schedules.rotary import rotary
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.to_feature_major import ToFeatureMajor
from tests.ir.before_after import Kernels, applied
from tests.ir.test_annotate_sparsity import half_kept

CPU = CpuShape(32, 16, 32768)
PARAMETERS = {"w": "first", "u": "second", "b": "bias", "g": "gamma"}


def kernel(family, func, flops=0, **attrs):
    """Return a kernel with the attributes that say what it is; 8 is what TVM's fusion leaves alone."""
    return func.with_attrs({"rt3.kernel": family, "op_pattern": 8, "rt3.flops": flops, **attrs})


def weight(kind, name, bias="", level=-1, packing=(), transposed=False):
    """Return what a parameter of ``main`` holds."""
    return {
        "kind": kind,
        "weight": name,
        "bias": bias,
        "level": level,
        "packing": list(packing),
        "dense": kind != "raw" and bool(packing) and level == -1,
        "transposed": transposed,
        "element": "float32",
    }


def plan(family, matrix, packing):
    """Return a plan of 4 tokens, chosen by nobody."""
    part = LinearPart(LinearShape(1, matrix.rows, matrix.cols, matrix.kept, matrix.group), LinearDecisions(2))
    return LinearPlan(family, FEATURE_MAJOR, matrix, TokenCount(1, 4), packing, (part,))


def linear(plan, activation, flops):
    """Return the one kernel of a plan."""
    func = plan.kernel(plan.parts[0], activation, CPU)
    return kernel(plan.family, func, flops)


def check(before, expected, matrices):
    lowered = applied([ToFeatureMajor(VariantContext(1, 1, 4, CPU, PARAMETERS, matrices))], before)
    assert_structural_equal(lowered, expected)


NUMBERS = 8 * 16
"""Of a tensor of 4 tokens, padded to a tile."""
INTO = kernel("to_feature_major", border.to_feature_major(FEATURE_MAJOR, 1, 4, 8))
OUT = kernel("from_feature_major", border.from_feature_major(FEATURE_MAJOR, 1, 4, 8))


def test_linear_layers_and_a_residual_need_no_transpose_between_them():
    sparse = plan("pattern_linear", MatrixShape(16, 8, 3, 4), LinearPacking(4, 1, 3))
    dense = plan("dense_linear", MatrixShape.dense_of(8, 16), LinearPacking(4, 2, 4))
    of_first = {
        "Composite": "rt3.linear_bias_relu",
        "rt3.matrix": "first",
        "rt3.level": 1,
        "rt3.density": 0.375,
        "rt3.plan": sparse.to_attrs(),
    }
    of_second = {
        "Composite": "rt3.linear_transposed",
        "rt3.matrix": "second",
        "rt3.level": -1,
        "rt3.density": 1.0,
        "rt3.plan": dense.to_attrs(),
    }

    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 4, 8), "float32"),
            w: R.Tensor((16, 8), "float32"),
            b: R.Tensor((16,), "float32"),
            u: R.Tensor((16, 8), "float32"),
        ):
            R.func_attr({"num_input": 1})
            cls = Before
            with R.dataflow():
                hidden = cls.linear_bias_relu(w, x, b)
                product = cls.linear_transposed(hidden, u)
                y = R.add(product, x)
                R.output(y)
            return y

        @R.function(private=True)
        def linear_bias_relu(
            w: R.Tensor((16, 8), "float32"), x: R.Tensor((1, 4, 8), "float32"), b: R.Tensor((16,), "float32")
        ) -> R.Tensor((1, 4, 16), "float32"):
            R.func_attr(of_first)
            with R.dataflow():
                wt = R.permute_dims(w)
                product = R.matmul(x, wt)
                biased = R.add(product, b)
                y = R.nn.relu(biased)
                R.output(y)
            return y

        @R.function(private=True)
        def linear_transposed(x: R.Tensor((1, 4, 16), "float32"), u: R.Tensor((16, 8), "float32")) -> R.Tensor(
            (1, 4, 8), "float32"
        ):
            R.func_attr(of_second)
            with R.dataflow():
                y = R.matmul(x, u)
                R.output(y)
            return y

    first = [weight(kind, "first", "bias", 1, (4, 1, 3)) for kind in ("values", "offsets", "bias")]
    second = [weight(kind, "second", packing=(4, 2, 4), transposed=True) for kind in ("values", "offsets", "bias")]
    attrs = {"num_input": 1, "rt3.weights": first + second}

    kernels = Kernels(
        to_feature_major=INTO,
        pattern_linear=linear(sparse, "relu", 2 * 16 * 16 * 8 * 3 // 8),
        dense_linear=linear(dense, "none", 2 * 16 * 8 * 16),
        from_feature_major=OUT,
    )

    @R.function
    def main(
        x: R.Tensor((1, 4, 8), "float32"),
        first_values: R.Tensor((1, 4, 3, 4), "float32"),
        first_offsets: R.Tensor((1, 4, 3), "uint16"),
        first_bias: R.Tensor((4, 4), "float32"),
        second_values: R.Tensor((2, 2, 8, 4), "float32"),
        second_offsets: R.Tensor((2, 1, 8), "uint16"),
        second_bias: R.Tensor((2, 4), "float32"),
    ):
        R.func_attr(attrs)
        with R.dataflow():
            tiles = R.call_tir(kernels.to_feature_major, (x,), R.Tensor((1, 8, 16), "float32"))
            flat = R.reshape(tiles, (128,))
            hidden = R.call_tir(
                kernels.pattern_linear,
                (flat, first_values, first_offsets, first_bias),
                R.Tensor((1, 16, 16), "float32"),
            )
            flat_hidden = R.reshape(hidden, (256,))
            product = R.call_tir(
                kernels.dense_linear,
                (flat_hidden, second_values, second_offsets, second_bias),
                R.Tensor((1, 8, 16), "float32"),
            )
            total = R.add(product, tiles)
            y = R.call_tir(kernels.from_feature_major, (total,), R.Tensor((1, 4, 8), "float32"))
            out = (y,)
            R.output(out)
        return out

    check(Before, kernels.module(main), {"first": half_kept()})


def test_embeddings_dense_and_pattern_sparse_into_a_norm_that_keeps_their_sum():
    @I.ir_module
    class Before:
        @R.function
        def main(
            ids: R.Tensor((4,), "int64"),
            u: R.Tensor((10, 8), "float32"),
            w: R.Tensor((16, 8), "float32"),
            g: R.Tensor((8,), "float32"),
            b: R.Tensor((8,), "float32"),
        ):
            R.func_attr({"num_input": 1})
            cls = Before
            with R.dataflow():
                words = cls.embedding_of_10(u, ids)
                positions = cls.embedding_of_16(w, ids)
                both = cls.add_layer_norm(words, positions, g, b)
                total = both[1]
                normal = both[0]
                y = R.multiply(normal, total)
                R.output(y)
            return y

        @R.function(private=True)
        def embedding_of_10(table: R.Tensor((10, 8), "float32"), ids: R.Tensor((4,), "int64")) -> R.Tensor(
            (1, 4, 8), "float32"
        ):
            R.func_attr({"Composite": "rt3.embedding"})
            with R.dataflow():
                rows = R.take(table, ids, axis=0)
                y = R.reshape(rows, (1, 4, 8))
                R.output(y)
            return y

        @R.function(private=True)
        def embedding_of_16(table: R.Tensor((16, 8), "float32"), ids: R.Tensor((4,), "int64")) -> R.Tensor(
            (1, 4, 8), "float32"
        ):
            R.func_attr({"Composite": "rt3.embedding"})
            with R.dataflow():
                rows = R.take(table, ids, axis=0)
                y = R.reshape(rows, (1, 4, 8))
                R.output(y)
            return y

        @R.function(private=True)
        def add_layer_norm(
            x: R.Tensor((1, 4, 8), "float32"),
            r: R.Tensor((1, 4, 8), "float32"),
            g: R.Tensor((8,), "float32"),
            b: R.Tensor((8,), "float32"),
        ) -> R.Tuple(R.Tensor((1, 4, 8), "float32"), R.Tensor((1, 4, 8), "float32")):
            R.func_attr({"Composite": "rt3.add_layer_norm"})
            with R.dataflow():
                total = R.add(x, r)
                normal = R.nn.layer_norm(total, g, b, axes=[-1], epsilon=0.125)
                R.output(total, normal)
            return (normal, total)

    packed = [weight(kind, "first", level=1) for kind in ("values", "offsets")]
    attrs = {
        "num_input": 1,
        "rt3.weights": [weight("raw", "second"), *packed, weight("raw", "gamma"), weight("raw", "bias")],
    }

    gathered = border.pattern_embedding(FEATURE_MAJOR, 1, 4, 16, 8, 3, 4, ("uint16", "int64"))
    kernels = Kernels(
        embedding=kernel("embedding", border.embedding(FEATURE_MAJOR, 1, 4, 10, 8, "int64")),
        pattern_embedding=kernel("pattern_embedding", gathered),
        layer_norm=kernel("layer_norm", layer_norm(NormShape(1, 8, 0.125, residual=True, keep_sum=True)), 12 * NUMBERS),
        from_feature_major=OUT,
    )

    @R.function
    def main(
        ids: R.Tensor((4,), "int64"),
        table: R.Tensor((10, 8), "float32"),
        values: R.Tensor((16, 3), "float32"),
        columns: R.Tensor((4, 3), "uint16"),
        g: R.Tensor((8,), "float32"),
        b: R.Tensor((8,), "float32"),
    ):
        R.func_attr(attrs)
        with R.dataflow():
            words = R.call_tir(kernels.embedding, (table, ids), R.Tensor((1, 8, 16), "float32"))
            positions = R.call_tir(kernels.pattern_embedding, (values, columns, ids), R.Tensor((1, 8, 16), "float32"))
            both = R.call_tir(
                kernels.layer_norm,
                (words, positions, g, b),
                [R.Tensor((1, 8, 16), "float32"), R.Tensor((1, 8, 16), "float32")],
            )
            normal = both[0]
            total = both[1]
            product = R.multiply(normal, total)
            y = R.call_tir(kernels.from_feature_major, (product,), R.Tensor((1, 4, 8), "float32"))
            out = (y,)
            R.output(out)
        return out

    check(Before, kernels.module(main), {"first": half_kept()})


def test_tokens_of_one_input_that_stand_first_fill_tiles_and_their_heads_cost_nothing():
    """(length, 1, features): also (length, 1, heads, dim) to heads and back, and a bias of heads, are names and one addition."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4, 1, 8), "float32"), g: R.Tensor((8,), "float32"), b: R.Tensor((2, 4), "float32")):
            R.func_attr({"num_input": 1})
            cls = Before
            with R.dataflow():
                normal = cls.rms_norm(x, g)
                split = R.reshape(normal, (4, 1, 2, 4))
                biased = R.add(split, b)
                heads = R.permute_dims(biased, axes=[1, 2, 0, 3])
                mixed = cls.attention(heads, heads, heads)
                together = R.permute_dims(mixed, axes=[2, 0, 1, 3])
                flat = R.reshape(together, (4, 1, 8))
                y = R.permute_dims(flat, axes=[1, 0, 2])
                R.output(y)
            return y

        @R.function(private=True)
        def rms_norm(x: R.Tensor((4, 1, 8), "float32"), g: R.Tensor((8,), "float32")) -> R.Tensor((4, 1, 8), "float32"):
            R.func_attr({"Composite": "rt3.rms_norm"})
            with R.dataflow():
                y = R.nn.rms_norm(x, g, axes=[-1], epsilon=0.125)
                R.output(y)
            return y

        @R.function(private=True)
        def attention(
            q: R.Tensor((1, 2, 4, 4), "float32"),
            k: R.Tensor((1, 2, 4, 4), "float32"),
            v: R.Tensor((1, 2, 4, 4), "float32"),
        ) -> R.Tensor((1, 2, 4, 4), "float32"):
            R.func_attr({"Composite": "rt3.attention", "rt3.scale": 0.5, "rt3.soft_cap": 0.0})
            with R.dataflow():
                y = R.add(q, v)
                R.output(y)
            return y

    shape = AttentionShape(1, 4, 2, 4, 0.5)
    norm = NormShape(1, 8, 0.125, centred=False)
    kernels = Kernels(
        to_feature_major=INTO,
        layer_norm=kernel("layer_norm", layer_norm(norm), round(norm.flops)),
        attention1=kernel("attention", attention_of(shape, CPU), round(shape.flops)),
        from_feature_major=OUT,
    )

    @R.function
    def main(x: R.Tensor((4, 1, 8), "float32"), g: R.Tensor((8,), "float32"), b: R.Tensor((2, 4), "float32")):
        R.func_attr({"num_input": 1, "rt3.weights": [weight("raw", "gamma"), weight("raw", "bias")]})
        with R.dataflow():
            flat = R.reshape(x, (1, 4, 8))
            tiles = R.call_tir(kernels.to_feature_major, (flat,), R.Tensor((1, 8, 16), "float32"))
            normal = R.call_tir(kernels.layer_norm, (tiles, tiles, g, g), R.Tensor((1, 8, 16), "float32"))
            column = R.reshape(b, (8, 1))
            heads = R.add(normal, column)
            mixed = R.call_tir(
                kernels.attention1,
                (heads, heads, heads, NO_KEY_BIAS, NO_BIAS),
                R.Tensor((1, 8, 16), "float32"),
            )
            y = R.call_tir(kernels.from_feature_major, (mixed,), R.Tensor((1, 4, 8), "float32"))
            out = (y,)
            R.output(out)
        return out

    check(Before, kernels.module(main), {})


GAMMA = relax.const(np.full(8, 0.5, np.float32))
ANGLES = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
TILES = np.zeros((2, 4, 16), np.float32)
TILES[:, :, :4] = ANGLES.transpose(0, 2, 1)
COS, SIN = (relax.const(a[None, None]) for a in ANGLES)
COS_TILES, SIN_TILES = (relax.const(t[None]) for t in TILES)
NO_BIAS = relax.const(np.zeros((1, 1, 1), np.float32))
NO_KEY_BIAS = relax.const(np.zeros((1, 1, 1, 1), np.float32))


def test_heads_are_only_a_name_for_features():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 4, 8), "float32"), mask: R.Tensor((1, 1, 1, 4), "float32"), g: R.Tensor((8,), "float32")
        ):
            R.func_attr({"num_input": 2})
            cls = Before
            with R.dataflow():
                normal = cls.rms_norm(x, g)
                split = R.reshape(normal, (1, 4, 2, 4))
                heads = R.permute_dims(split, axes=[0, 2, 1, 3])
                q = cls.rotary(heads, COS, SIN)
                mixed = cls.attention(q, heads, heads, mask)
                together = R.permute_dims(mixed, axes=[0, 2, 1, 3])
                y = R.reshape(together, (1, 4, 8))
                R.output(y)
            return y

        @R.function(private=True)
        def rms_norm(x: R.Tensor((1, 4, 8), "float32"), g: R.Tensor((8,), "float32")) -> R.Tensor((1, 4, 8), "float32"):
            R.func_attr({"Composite": "rt3.rms_norm"})
            with R.dataflow():
                y = R.nn.rms_norm(x, g, axes=[-1], epsilon=0.125)
                R.output(y)
            return y

        @R.function(private=True)
        def rotary(
            x: R.Tensor((1, 2, 4, 4), "float32"),
            cos: R.Tensor((1, 1, 4, 4), "float32"),
            sin: R.Tensor((1, 1, 4, 4), "float32"),
        ) -> R.Tensor((1, 2, 4, 4), "float32"):
            R.func_attr({"Composite": "rt3.rotary"})
            with R.dataflow():
                low = R.strided_slice(x, axes=[3], begin=[0], end=[2], strides=[1])
                high = R.strided_slice(x, axes=[3], begin=[2], end=[4], strides=[1])
                negative = R.negative(high)
                rotated = R.concat([negative, low], axis=3)
                a = R.multiply(x, cos)
                b = R.multiply(rotated, sin)
                y = R.add(a, b)
                R.output(y)
            return y

        @R.function(private=True)
        def attention(
            q: R.Tensor((1, 2, 4, 4), "float32"),
            k: R.Tensor((1, 2, 4, 4), "float32"),
            v: R.Tensor((1, 2, 4, 4), "float32"),
            key_bias: R.Tensor((1, 1, 1, 4), "float32"),
        ) -> R.Tensor((1, 2, 4, 4), "float32"):
            R.func_attr({"Composite": "rt3.attention", "rt3.scale": 0.5, "rt3.soft_cap": 3.0})
            with R.dataflow():
                y = R.add(v, v)  # what it means is for who reads it
                R.output(y)
            return y

    attrs = {"num_input": 2, "rt3.weights": [weight("raw", "gamma")]}

    shape = AttentionShape(1, 4, 2, 4, 0.5, key_bias=(1, 1), soft_cap=3.0)
    kernels = Kernels(
        to_feature_major=INTO,
        layer_norm=kernel("layer_norm", layer_norm(NormShape(1, 8, 0.125, centred=False)), 4 * NUMBERS),
        rotary1=kernel("rotary", rotary(FEATURE_MAJOR, 1, 4, 2, 4), 3 * NUMBERS),
        attention1=kernel("attention", attention_of(shape, CPU), 2 * 2 * (4 + 4) * 16 * 16),
        from_feature_major=OUT,
    )

    @R.function
    def main(x: R.Tensor((1, 4, 8), "float32"), mask: R.Tensor((1, 1, 1, 4), "float32"), g: R.Tensor((8,), "float32")):
        R.func_attr(attrs)
        with R.dataflow():
            tiles = R.call_tir(kernels.to_feature_major, (x,), R.Tensor((1, 8, 16), "float32"))
            normal = R.call_tir(kernels.layer_norm, (tiles, tiles, g, g), R.Tensor((1, 8, 16), "float32"))
            q = R.call_tir(kernels.rotary1, (normal, COS_TILES, SIN_TILES), R.Tensor((1, 8, 16), "float32"))
            mixed = R.call_tir(kernels.attention1, (q, normal, normal, mask, NO_BIAS), R.Tensor((1, 8, 16), "float32"))
            y = R.call_tir(kernels.from_feature_major, (mixed,), R.Tensor((1, 4, 8), "float32"))
            out = (y,)
            R.output(out)
        return out

    check(Before, kernels.module(main), {})


def test_what_has_no_kernel_gets_plain_tensors():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4, 8), "float32"), z: R.Tensor((8, 4), "float32")):
            R.func_attr({"num_input": 2})
            cls = Before
            with R.dataflow():
                normal = cls.rms_norm(x, GAMMA)
                parts = R.split(normal, 2, axis=-1)
                left = parts[0]
                right = parts[1]
                weights = R.nn.softmax(left, axis=0)
                gated = R.multiply(weights, right)
                product = cls.linear_transposed(normal, z)
                y = (gated, product)
                R.output(y)
            return y

        @R.function(private=True)
        def rms_norm(x: R.Tensor((4, 8), "float32"), g: R.Tensor((8,), "float32")) -> R.Tensor((4, 8), "float32"):
            R.func_attr({"Composite": "rt3.rms_norm"})
            with R.dataflow():
                y = R.nn.rms_norm(x, g, axes=[-1], epsilon=0.125)
                R.output(y)
            return y

        @R.function(private=True)
        def linear_transposed(x: R.Tensor((4, 8), "float32"), z: R.Tensor((8, 4), "float32")) -> R.Tensor(
            (4, 4), "float32"
        ):
            R.func_attr({"Composite": "rt3.linear_transposed"})
            with R.dataflow():
                y = R.matmul(x, z)
                R.output(y)
            return y

    attrs = {"num_input": 2, "rt3.weights": []}

    kernels = Kernels(
        to_feature_major=INTO,
        layer_norm=kernel("layer_norm", layer_norm(NormShape(1, 8, 0.125, centred=False)), 4 * NUMBERS),
        from_feature_major=kernel("from_feature_major", border.from_feature_major(FEATURE_MAJOR, 1, 4, 4)),
        to_feature_major1=kernel("to_feature_major", border.to_feature_major(FEATURE_MAJOR, 1, 4, 4)),
        from_feature_major1=OUT,
    )

    @R.function
    def main(x: R.Tensor((4, 8), "float32"), z: R.Tensor((8, 4), "float32")):
        R.func_attr(attrs)
        with R.dataflow():
            batch = R.reshape(x, (1, 4, 8))
            tiles = R.call_tir(kernels.to_feature_major, (batch,), R.Tensor((1, 8, 16), "float32"))
            normal = R.call_tir(kernels.layer_norm, (tiles, tiles, GAMMA, GAMMA), R.Tensor((1, 8, 16), "float32"))
            left = R.strided_slice(normal, axes=[1], begin=[0], end=[4])
            right = R.strided_slice(normal, axes=[1], begin=[4], end=[8])
            left_rows = R.call_tir(kernels.from_feature_major, (left,), R.Tensor((1, 4, 4), "float32"))
            left_plain = R.reshape(left_rows, (4, 4))
            weights = R.nn.softmax(left_plain, axis=0)
            weights_batch = R.reshape(weights, (1, 4, 4))
            weights_tiles = R.call_tir(kernels.to_feature_major1, (weights_batch,), R.Tensor((1, 4, 16), "float32"))
            gated = R.multiply(weights_tiles, right)
            rows = R.call_tir(kernels.from_feature_major1, (normal,), R.Tensor((1, 4, 8), "float32"))
            plain = R.reshape(rows, (4, 8))
            product = R.matmul(plain, z)
            gated_rows = R.call_tir(kernels.from_feature_major, (gated,), R.Tensor((1, 4, 4), "float32"))
            gated_plain = R.reshape(gated_rows, (4, 4))
            out = (gated_plain, product)
            R.output(out)
        return out

    check(Before, kernels.module(main), {})
