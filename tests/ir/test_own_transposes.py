"""Layers that share a weight do not share its transpose."""

from tvm.script import ir as I
from tvm.script import relax as R

from rt3_tvm.transform.own_transposes import OwnTransposes
from tests.ir.before_after import check_pair, check_unchanged


@I.ir_module
class TwoLayersOfOneWeight:
    @R.function
    def before(x: R.Tensor((4, 8), "float32"), w: R.Tensor((8, 8), "float32")):
        with R.dataflow():
            wt = R.permute_dims(w)
            a = R.matmul(x, wt)
            b = R.nn.relu(a)
            y = R.matmul(b, wt)
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((4, 8), "float32"), w: R.Tensor((8, 8), "float32")):
        with R.dataflow():
            first = R.permute_dims(w)
            a = R.matmul(x, first)
            b = R.nn.relu(a)
            second = R.permute_dims(w)
            y = R.matmul(b, second)
            R.output(y)
        return y


@I.ir_module
class TransposesOfOtherThings:
    @R.function
    def main(q: R.Tensor((1, 2, 4, 8), "float32"), w: R.Tensor((8, 4), "float32")):
        with R.dataflow():
            kt = R.permute_dims(q, axes=[0, 1, 3, 2])
            a = R.matmul(q, kt)
            b = R.add(q, q)
            c = R.matmul(b, kt)
            wt = R.permute_dims(w)
            d = R.matmul(wt, kt)
            e = R.matmul(wt, w)
            y = (a, c, d, e)
            R.output(y)
        return y


def test_each_product_has_its_own_transpose_of_a_matrix():
    check_pair([OwnTransposes()], TwoLayersOfOneWeight)


def test_heads_and_left_sides_of_products_share_theirs():
    check_unchanged([OwnTransposes()], TransposesOfOtherThings)
