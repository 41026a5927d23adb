"""Each linear layer learns which matrix it is, how it is pruned at this level, and its plan."""

import numpy as np
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from rt3_tvm.pattern import Backbone, PatternSet, PatternShape, SparseMatrix
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.linear_decisions import MatrixShape
from rt3_tvm.schedules.linear_plan import TokenCount, plan_linear
from rt3_tvm.transform.annotate_sparsity import AnnotateSparsity
from rt3_tvm.transform.context import VariantContext
from tests.ir.before_after import applied, check_unchanged

CPU = CpuShape(32, 16, 32768)


def columns(*rows):
    return np.array(rows, np.int32)


def half_kept():
    """Return a 16 x 8 matrix of which each group of 4 rows keeps 3 of 6 columns that the backbone leaves."""
    backbone = Backbone((16, 8), 8, columns([0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7]))
    patterns = PatternSet(PatternShape(4, 6, 4), columns([[0, 1, 2]], [[1, 3, 5]]))
    return SparseMatrix(backbone, patterns, columns([0], [1], [1], [0]))


def context(matrices):
    return VariantContext(3, 1, 4, CPU, {"w": "first", "b": "bias", "u": "second"}, matrices)


SPARSE = plan_linear(CPU, MatrixShape(16, 8, 3, 4), TokenCount(1, 4))
DENSE = plan_linear(CPU, MatrixShape.dense_of(8, 16), TokenCount(1, 4))
OF_FIRST = {
    "Composite": "rt3.linear_bias",
    "rt3.matrix": "first",
    "rt3.level": 3,
    "rt3.density": 0.375,
    "rt3.kernel": str(SPARSE),
    "rt3.plan": SPARSE.to_attrs(),
    "rt3.block": [8, 8],
    "rt3.block_density": 0.75,
    "rt3.pattern_shape": [4, 6],
    "rt3.group": 4,
    "rt3.patterns": 2,
}
OF_SECOND = {
    "Composite": "rt3.linear_transposed",
    "rt3.matrix": "second",
    "rt3.level": -1,
    "rt3.density": 1.0,
    "rt3.kernel": str(DENSE),
    "rt3.plan": DENSE.to_attrs(),
}


def test_a_pruned_matrix_and_one_that_is_not():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 4, 8), "float32"),
            w: R.Tensor((16, 8), "float32"),
            b: R.Tensor((16,), "float32"),
            u: R.Tensor((16, 8), "float32"),
        ):
            cls = Before
            with R.dataflow():
                a = cls.linear_bias(w, x, b)
                y = cls.linear_transposed(a, u)
                R.output(y)
            return y

        @R.function(private=True)
        def linear_bias(
            w: R.Tensor((16, 8), "float32"), x: R.Tensor((1, 4, 8), "float32"), b: R.Tensor((16,), "float32")
        ) -> R.Tensor((1, 4, 16), "float32"):
            R.func_attr({"Composite": "rt3.linear_bias"})
            with R.dataflow():
                wt = R.permute_dims(w)
                product = R.matmul(x, wt)
                y = R.add(product, b)
                R.output(y)
            return y

        @R.function(private=True)
        def linear_transposed(x: R.Tensor((1, 4, 16), "float32"), u: R.Tensor((16, 8), "float32")) -> R.Tensor(
            (1, 4, 8), "float32"
        ):
            R.func_attr({"Composite": "rt3.linear_transposed"})
            with R.dataflow():
                y = R.matmul(x, u)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((1, 4, 8), "float32"),
            w: R.Tensor((16, 8), "float32"),
            b: R.Tensor((16,), "float32"),
            u: R.Tensor((16, 8), "float32"),
        ):
            cls = Expected
            with R.dataflow():
                a = cls.linear_bias1(w, x, b)
                y = cls.linear_transposed1(a, u)
                R.output(y)
            return y

        @R.function(private=True)
        def linear_bias1(
            w: R.Tensor((16, 8), "float32"), x: R.Tensor((1, 4, 8), "float32"), b: R.Tensor((16,), "float32")
        ) -> R.Tensor((1, 4, 16), "float32"):
            R.func_attr(OF_FIRST)
            with R.dataflow():
                wt = R.permute_dims(w)
                product = R.matmul(x, wt)
                y = R.add(product, b)
                R.output(y)
            return y

        @R.function(private=True)
        def linear_transposed1(x: R.Tensor((1, 4, 16), "float32"), u: R.Tensor((16, 8), "float32")) -> R.Tensor(
            (1, 4, 8), "float32"
        ):
            R.func_attr(OF_SECOND)
            with R.dataflow():
                y = R.matmul(x, u)
                R.output(y)
            return y

    assert_structural_equal(applied([AnnotateSparsity(context({"first": half_kept()}))], Before), Expected)


def test_layers_that_share_a_function_get_one_each_and_reshaped_weights_are_found():
    """Of a convolution over patches the weight comes reshaped."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4, 8), "float32"), w: R.Tensor((8, 2, 4), "float32"), u: R.Tensor((8, 8), "float32")):
            cls = Before
            with R.dataflow():
                flat = R.reshape(w, (8, 8))
                a = cls.linear_transposed(x, flat)
                y = cls.linear_transposed(a, u)
                R.output(y)
            return y

        @R.function(private=True)
        def linear_transposed(x: R.Tensor((4, 8), "float32"), w: R.Tensor((8, 8), "float32")) -> R.Tensor(
            (4, 8), "float32"
        ):
            R.func_attr({"Composite": "rt3.linear_transposed"})
            with R.dataflow():
                y = R.matmul(x, w)
                R.output(y)
            return y

    plan = plan_linear(CPU, MatrixShape.dense_of(8, 8), TokenCount(1, 4))
    first = OF_SECOND | {"rt3.matrix": "first", "rt3.kernel": str(plan), "rt3.plan": plan.to_attrs()}
    second = first | {"rt3.matrix": "second"}

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((4, 8), "float32"), w: R.Tensor((8, 2, 4), "float32"), u: R.Tensor((8, 8), "float32")):
            cls = Expected
            with R.dataflow():
                flat = R.reshape(w, (8, 8))
                a = cls.linear_transposed1(x, flat)
                y = cls.linear_transposed2(a, u)
                R.output(y)
            return y

        @R.function(private=True)
        def linear_transposed1(x: R.Tensor((4, 8), "float32"), w: R.Tensor((8, 8), "float32")) -> R.Tensor(
            (4, 8), "float32"
        ):
            R.func_attr(first)
            with R.dataflow():
                y = R.matmul(x, w)
                R.output(y)
            return y

        @R.function(private=True)
        def linear_transposed2(x: R.Tensor((4, 8), "float32"), w: R.Tensor((8, 8), "float32")) -> R.Tensor(
            (4, 8), "float32"
        ):
            R.func_attr(second)
            with R.dataflow():
                y = R.matmul(x, w)
                R.output(y)
            return y

    assert_structural_equal(applied([AnnotateSparsity(context({}))], Before), Expected)


@I.ir_module
class ProductOfInputs:
    @R.function
    def main(x: R.Tensor((4, 8), "float32"), z: R.Tensor((8, 8), "float32")):
        cls = ProductOfInputs
        with R.dataflow():
            y = cls.linear_transposed(x, z)
            R.output(y)
        return y

    @R.function(private=True)
    def linear_transposed(x: R.Tensor((4, 8), "float32"), z: R.Tensor((8, 8), "float32")) -> R.Tensor(
        (4, 8), "float32"
    ):
        R.func_attr({"Composite": "rt3.linear_transposed"})
        with R.dataflow():
            y = R.matmul(x, z)
            R.output(y)
        return y


def test_a_product_of_two_inputs_is_no_layer():
    check_unchanged([AnnotateSparsity(context({}))], ProductOfInputs)
