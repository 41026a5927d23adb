"""Phase 1 as a whole: what export leaves behind goes."""

from tvm.script import ir as I
from tvm.script import relax as R

from rt3_tvm.transform.simplify import simplify_passes
from tests.ir.before_after import check_pair


@I.ir_module
class Exported:
    @R.function
    def before(x: R.Tensor((4, 8), "float32"), w: R.Tensor((8, 8), "float32"), unused: R.Tensor((8,), "float32")):
        with R.dataflow():
            same = x
            nothing = R.add(unused, unused)  # noqa: F841
            one = R.const(1.0, "float32")
            three = R.add(one, R.const(2.0, "float32"))
            both = (same, three)
            first = both[0]
            wt = R.permute_dims(w)
            a = R.matmul(first, wt)
            second = both[1]
            b = R.multiply(a, second)
            gate = R.sigmoid(b)
            c = R.multiply(gate, b)
            y = R.matmul(c, wt)
            out = (y,)
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor((4, 8), "float32"), w: R.Tensor((8, 8), "float32"), unused: R.Tensor((8,), "float32")):
        with R.dataflow():
            first = R.permute_dims(w)
            a = R.matmul(x, first)
            b = R.multiply(a, R.const(3.0, "float32"))
            c = R.nn.silu(b)
            second = R.permute_dims(w)
            y = R.matmul(c, second)
            out = (y,)
            R.output(out)
        return out


def test_what_export_leaves_behind_goes():
    check_pair(simplify_passes(), Exported)
