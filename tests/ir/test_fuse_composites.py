"""The operators of each composite become one function, and its call; what does not fit stays outside of it."""

from itertools import product

import pytest
import tvm
from tvm import relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from rt3_tvm.transform.composites import COMPOSITES
from rt3_tvm.transform.fuse_composites import fuse_composites_passes
from tests.ir.before_after import applied, check_unchanged, named_by_composite


def check(before, expected):
    assert_structural_equal(named_by_composite(applied(fuse_composites_passes(), before)), expected)


def test_linear_layer():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4, 8), "float32"), w: R.Tensor((16, 8), "float32"), b: R.Tensor((16,), "float32")):
            with R.dataflow():
                wt = R.permute_dims(w)
                product = R.matmul(x, wt)
                biased = R.add(product, b)
                y = R.nn.gelu(biased)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 4, 8), "float32"), w: R.Tensor((16, 8), "float32"), b: R.Tensor((16,), "float32")):
            cls = Expected
            with R.dataflow():
                y = cls.linear_bias_gelu(w, x, b)
                R.output(y)
            return y

        @R.function(private=True)
        def linear_bias_gelu(
            w: R.Tensor((16, 8), "float32"), x: R.Tensor((2, 4, 8), "float32"), b: R.Tensor((16,), "float32")
        ) -> R.Tensor((2, 4, 16), "float32"):
            R.func_attr({"Composite": "rt3.linear_bias_gelu", "Primitive": True})
            with R.dataflow():
                wt = R.permute_dims(w)
                product = R.matmul(x, wt)
                biased = R.add(product, b)
                y = R.nn.gelu(biased)
                R.output(y)
            return y

    check(Before, Expected)


OPERATORS = {
    "": None,
    "_gelu": relax.op.nn.gelu,
    "_gelu_tanh": relax.op.nn.gelu_tanh,
    "_relu": relax.op.nn.relu,
    "_silu": relax.op.nn.silu,
    "_tanh": relax.op.tanh,
}
LINEARS = {
    f"linear{'_transposed' * transposed}{'_bias' * bias}{activation}": (transposed, bias, operator)
    for transposed, bias, (activation, operator) in product((False, True), (False, True), OPERATORS.items())
}


def layer(name):
    """Return a function that spells out a linear layer."""
    transposed, with_bias, activation = LINEARS[name]
    x, b = relax.Var("x", relax.TensorType((4, 8), "float32")), relax.Var("b", relax.TensorType((16,), "float32"))
    w = relax.Var("w", relax.TensorType((8, 16) if transposed else (16, 8), "float32"))
    params, builder = [x, w] if transposed else [w, x], relax.BlockBuilder()
    with builder.function("main", [*params, b] if with_bias else params):
        with builder.dataflow():
            value = relax.op.matmul(x, w if transposed else builder.emit(relax.op.permute_dims(w)))
            value = relax.op.add(builder.emit(value), b) if with_bias else value
            value = activation(builder.emit(value)) if activation else value
            out = builder.emit_output(value)
        builder.emit_func_output(out)
    return builder.get()["main"]


@pytest.mark.parametrize("name", LINEARS)
def test_every_form_of_linear_layer(name):
    attrs = {"Composite": f"rt3.{name}", "Primitive": True}
    whole = layer(name)
    composite = whole.without_attr("global_symbol").with_attrs(attrs)
    builder = relax.BlockBuilder()
    called = builder.add_func(composite, name)
    params = [relax.Var(p.name, p.ty) for p in whole.params]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(relax.Call(called, params, None, []))
        builder.emit_func_output(out)
    check(tvm.IRModule({"main": whole}), builder.get())


def test_every_linear_composite_is_one_of_these():
    assert {f"rt3.{name}" for name in LINEARS} == {row.name for row in COMPOSITES.values() if row.kind == "linear"}


def test_norms_with_the_residual_before_them_and_a_sum_that_is_used_again():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((4, 8), "float32"),
            r: R.Tensor((4, 8), "float32"),
            g: R.Tensor((8,), "float32"),
            b: R.Tensor((8,), "float32"),
        ):
            with R.dataflow():
                total = R.add(x, r)
                normal = R.nn.layer_norm(total, g, b, axes=[-1], epsilon=0.125)
                again = R.add(normal, total)
                y = R.nn.rms_norm(again, g, axes=[-1], epsilon=0.25)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((4, 8), "float32"),
            r: R.Tensor((4, 8), "float32"),
            g: R.Tensor((8,), "float32"),
            b: R.Tensor((8,), "float32"),
        ):
            cls = Expected
            with R.dataflow():
                both = cls.add_layer_norm(x, r, g, b)
                total = both[1]
                normal = both[0]
                y = cls.add_rms_norm(normal, total, g)
                R.output(y)
            return y

        @R.function(private=True)
        def add_layer_norm(
            x: R.Tensor((4, 8), "float32"),
            r: R.Tensor((4, 8), "float32"),
            g: R.Tensor((8,), "float32"),
            b: R.Tensor((8,), "float32"),
        ) -> R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32")):
            R.func_attr({"Composite": "rt3.add_layer_norm", "Primitive": True})
            with R.dataflow():
                total = R.add(x, r)
                normal = R.nn.layer_norm(total, g, b, axes=[-1], epsilon=0.125)
                R.output(total, normal)
            return (normal, total)

        @R.function(private=True)
        def add_rms_norm(
            x: R.Tensor((4, 8), "float32"), r: R.Tensor((4, 8), "float32"), g: R.Tensor((8,), "float32")
        ) -> R.Tensor((4, 8), "float32"):
            R.func_attr({"Composite": "rt3.add_rms_norm", "Primitive": True})
            with R.dataflow():
                again = R.add(x, r)
                y = R.nn.rms_norm(again, g, axes=[-1], epsilon=0.25)
                R.output(y)
            return y

    check(Before, Expected)


def test_norms_alone():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4, 8), "float32"), g: R.Tensor((8,), "float32"), b: R.Tensor((8,), "float32")):
            with R.dataflow():
                a = R.nn.layer_norm(x, g, b, axes=[-1], epsilon=0.125)
                c = R.exp(a)
                y = R.nn.rms_norm(c, g, axes=[-1], epsilon=0.125)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 4, 8), "float32"), g: R.Tensor((8,), "float32"), b: R.Tensor((8,), "float32")):
            cls = Expected
            with R.dataflow():
                a = cls.layer_norm(x, g, b)
                c = R.exp(a)
                y = cls.rms_norm(c, g)
                R.output(y)
            return y

        @R.function(private=True)
        def layer_norm(
            x: R.Tensor((2, 4, 8), "float32"), g: R.Tensor((8,), "float32"), b: R.Tensor((8,), "float32")
        ) -> R.Tensor((2, 4, 8), "float32"):
            R.func_attr({"Composite": "rt3.layer_norm", "Primitive": True})
            with R.dataflow():
                y = R.nn.layer_norm(x, g, b, axes=[-1], epsilon=0.125)
                R.output(y)
            return y

        @R.function(private=True)
        def rms_norm(x: R.Tensor((2, 4, 8), "float32"), g: R.Tensor((8,), "float32")) -> R.Tensor((2, 4, 8), "float32"):
            R.func_attr({"Composite": "rt3.rms_norm", "Primitive": True})
            with R.dataflow():
                y = R.nn.rms_norm(x, g, axes=[-1], epsilon=0.125)
                R.output(y)
            return y

    check(Before, Expected)


def test_rotary_positions():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 2, 4, 8), "float32"),
            cos: R.Tensor((1, 1, 4, 8), "float32"),
            sin: R.Tensor((1, 1, 4, 8), "float32"),
        ):
            with R.dataflow():
                low = R.strided_slice(x, axes=[3], begin=[0], end=[4], strides=[1])
                high = R.strided_slice(x, axes=[3], begin=[4], end=[8], strides=[1])
                negative = R.negative(high)
                rotated = R.concat([negative, low], axis=3)
                a = R.multiply(x, cos)
                b = R.multiply(rotated, sin)
                y = R.add(a, b)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((1, 2, 4, 8), "float32"),
            cos: R.Tensor((1, 1, 4, 8), "float32"),
            sin: R.Tensor((1, 1, 4, 8), "float32"),
        ):
            cls = Expected
            with R.dataflow():
                y = cls.rotary(x, cos, sin)
                R.output(y)
            return y

        @R.function(private=True)
        def rotary(
            x: R.Tensor((1, 2, 4, 8), "float32"),
            cos: R.Tensor((1, 1, 4, 8), "float32"),
            sin: R.Tensor((1, 1, 4, 8), "float32"),
        ) -> R.Tensor((1, 2, 4, 8), "float32"):
            R.func_attr({"Composite": "rt3.rotary", "Primitive": True})
            with R.dataflow():
                low = R.strided_slice(x, axes=[3], begin=[0], end=[4], strides=[1])
                high = R.strided_slice(x, axes=[3], begin=[4], end=[8], strides=[1])
                negative = R.negative(high)
                rotated = R.concat([negative, low], axis=3)
                a = R.multiply(x, cos)
                b = R.multiply(rotated, sin)
                y = R.add(a, b)
                R.output(y)
            return y

    check(Before, Expected)


def test_embedding():
    @I.ir_module
    class Before:
        @R.function
        def main(table: R.Tensor((10, 8), "float32"), ids: R.Tensor((1, 4), "int64")):
            with R.dataflow():
                flat = R.reshape(ids, (4,))
                rows = R.take(table, flat, axis=0)
                y = R.reshape(rows, (1, 4, 8))
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(table: R.Tensor((10, 8), "float32"), ids: R.Tensor((1, 4), "int64")):
            cls = Expected
            with R.dataflow():
                flat = R.reshape(ids, (4,))
                y = cls.embedding(table, flat)
                R.output(y)
            return y

        @R.function(private=True)
        def embedding(table: R.Tensor((10, 8), "float32"), flat: R.Tensor((4,), "int64")) -> R.Tensor(
            (1, 4, 8), "float32"
        ):
            R.func_attr({"Composite": "rt3.embedding", "Primitive": True})
            with R.dataflow():
                rows = R.take(table, flat, axis=0)
                y = R.reshape(rows, (1, 4, 8))
                R.output(y)
            return y

    check(Before, Expected)


def test_what_is_added_to_each_token_is_no_bias():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4, 8), "float32"), w: R.Tensor((8, 8), "float32"), b: R.Tensor((4, 8), "float32")):
            with R.dataflow():
                product = R.matmul(x, w)
                y = R.add(product, b)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((4, 8), "float32"), w: R.Tensor((8, 8), "float32"), b: R.Tensor((4, 8), "float32")):
            cls = Expected
            with R.dataflow():
                product = cls.linear_transposed(x, w)
                y = R.add(product, b)
                R.output(y)
            return y

        @R.function(private=True)
        def linear_transposed(x: R.Tensor((4, 8), "float32"), w: R.Tensor((8, 8), "float32")) -> R.Tensor(
            (4, 8), "float32"
        ):
            R.func_attr({"Composite": "rt3.linear_transposed", "Primitive": True})
            with R.dataflow():
                product = R.matmul(x, w)
                R.output(product)
            return product

    check(Before, Expected)


@I.ir_module
class ProductsOfOtherShapes:
    @R.function
    def main(x: R.Tensor((1, 2, 4, 8), "float32"), w: R.Tensor((8, 8), "float32"), z: R.Tensor((2, 8, 8), "float32")):
        with R.dataflow():
            of_heads = R.matmul(x, w)
            of_a_batch = R.matmul(z, z)
            y = (of_heads, of_a_batch)
            R.output(y)
        return y


@I.ir_module
class RotatedByAnotherPart:
    @R.function
    def main(x: R.Tensor((1, 2, 4, 8), "float32"), c: R.Tensor((1, 1, 4, 8), "float32")):
        with R.dataflow():
            low = R.strided_slice(x, axes=[3], begin=[2], end=[6], strides=[1])
            high = R.strided_slice(x, axes=[3], begin=[4], end=[8], strides=[1])
            negative = R.negative(high)
            rotated = R.concat([negative, low], axis=3)
            a = R.multiply(x, c)
            b = R.multiply(rotated, c)
            y = R.add(a, b)
            R.output(y)
        return y


@I.ir_module
class NormOfHeads:
    @R.function
    def main(x: R.Tensor((1, 2, 4, 8), "float32"), g: R.Tensor((8,), "float32")):
        with R.dataflow():
            y = R.nn.rms_norm(x, g, axes=[-1], epsilon=0.125)
            R.output(y)
        return y


@I.ir_module
class RowsOfIntegers:
    @R.function
    def main(table: R.Tensor((10, 8), "int64"), ids: R.Tensor((4,), "int64")):
        with R.dataflow():
            rows = R.take(table, ids, axis=0)
            y = R.reshape(rows, (1, 4, 8))
            R.output(y)
        return y


@pytest.mark.parametrize("mod", [ProductsOfOtherShapes, RotatedByAnotherPart, NormOfHeads, RowsOfIntegers])
def test_what_does_not_fit_stays(mod):
    check_unchanged(fuse_composites_passes(), mod)
