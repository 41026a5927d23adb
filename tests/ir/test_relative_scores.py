"""Scores that are shifted for relative positions become one function; other shifts are left to their operators."""

import numpy as np
import pytest
from tvm import relax
from tvm.ir import assert_structural_equal
from tvm.script import ir as I
from tvm.script import relax as R

from rt3_tvm.transform.fuse_attention import FuseAttention
from tests.ir.before_after import applied

PASSES = [FuseAttention(), relax.transform.DeadCodeElimination(["main"])]
GATE = relax.const(np.tril(np.ones((3, 4), np.float32)))
WIDE_GATE = relax.const(np.tril(np.ones((1, 1, 3, 4), np.float32)))


def test_positions_with_a_gate_and_a_mask():
    @I.ir_module
    class Before:
        @R.function
        def main(
            q: R.Tensor((1, 2, 3, 8), "float32"),
            k: R.Tensor((1, 2, 4, 8), "float32"),
            p: R.Tensor((1, 2, 10, 8), "float32"),
            m: R.Tensor((1, 1, 3, 4), "float32"),
        ):
            with R.dataflow():
                kt = R.permute_dims(k, axes=[0, 1, 3, 2])
                content = R.matmul(q, kt)
                pt = R.permute_dims(p, axes=[0, 1, 3, 2])
                all_positions = R.matmul(q, pt)
                forth = R.reshape(all_positions, (1, 2, 10, 3))
                rows = R.strided_slice(forth, axes=[2], begin=[2], end=[10])
                back = R.reshape(rows, (1, 2, 3, 8))
                cut = R.strided_slice(back, axes=[3], begin=[0], end=[4])
                gated = R.multiply(cut, GATE)
                both = R.add(content, gated)
                scaled = R.multiply(both, R.const(0.5, "float32"))
                masked = R.add(scaled, m)
                w = R.nn.softmax(masked, axis=-1)
                y = R.matmul(w, k)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(
            q: R.Tensor((1, 2, 3, 8), "float32"),
            k: R.Tensor((1, 2, 4, 8), "float32"),
            p: R.Tensor((1, 2, 10, 8), "float32"),
            m: R.Tensor((1, 1, 3, 4), "float32"),
        ) -> R.Tensor((1, 2, 3, 8), "float32"):
            cls = Expected
            with R.dataflow():
                scores: R.Tensor((1, 2, 3, 4), "float32") = cls.relative_scores(q, p, WIDE_GATE, m)
                y: R.Tensor((1, 2, 3, 8), "float32") = cls.attention(q, k, k, scores)
                R.output(y)
            return y

        @R.function(private=True)
        def relative_scores(
            q: R.Tensor((1, 2, 3, 8), "float32"),
            r: R.Tensor((1, 2, 10, 8), "float32"),
            gate: R.Tensor((1, 1, 3, 4), "float32"),
            bias: R.Tensor((1, 1, 3, 4), "float32"),
        ) -> R.Tensor((1, 2, 3, 4), "float32"):
            R.func_attr({"Composite": "rt3.relative_scores", "rt3.shift": 2, "rt3.keys": 4, "rt3.factor": 0.5})
            with R.dataflow():
                rt = R.permute_dims(r, axes=[0, 1, 3, 2])
                products = R.matmul(q, rt)
                forth = R.reshape(products, (1, 2, 10, 3))
                rows = R.strided_slice(forth, axes=[2], begin=[2], end=[10])
                back = R.reshape(rows, (1, 2, 3, 8))
                cut = R.strided_slice(back, axes=[3], begin=[0], end=[4])
                gated = R.multiply(cut, gate)
                scaled = R.multiply(gated, R.const(0.5, "float32"))
                y = R.add(scaled, bias)
                R.output(y)
            return y

        @R.function(private=True)
        def attention(
            q: R.Tensor((1, 2, 3, 8), "float32"),
            k: R.Tensor((1, 2, 4, 8), "float32"),
            v: R.Tensor((1, 2, 4, 8), "float32"),
            score_bias: R.Tensor((1, 2, 3, 4), "float32"),
        ) -> R.Tensor((1, 2, 3, 8), "float32"):
            R.func_attr({"Composite": "rt3.attention", "rt3.scale": 0.5, "rt3.soft_cap": 0.0})
            with R.dataflow():
                kt = R.permute_dims(k, axes=[0, 1, 3, 2])
                s = R.matmul(q, kt)
                scaled = R.multiply(s, R.const(0.5, "float32"))
                biased = R.add(scaled, score_bias)
                w = R.nn.softmax(biased, axis=-1)
                y = R.matmul(w, v)
                R.output(y)
            return y

    assert_structural_equal(applied(PASSES, Before), Expected, map_free_vars=True)


def shifted(positions, begin, keys):
    """Return a module whose scores are shifted by so many of so many positions."""
    builder = relax.BlockBuilder()
    rows = {"q": 3, "k": keys, "v": keys, "p": positions}
    q, k, v, p = (relax.Var(n, relax.TensorType((1, 2, count, 8), "float32")) for n, count in rows.items())
    op = relax.op
    with builder.function("main", [q, k, v, p]):
        with builder.dataflow():
            emit = builder.emit
            content = emit(op.matmul(q, emit(op.permute_dims(k, [0, 1, 3, 2]))))
            places = emit(op.matmul(q, emit(op.permute_dims(p, [0, 1, 3, 2]))))
            forth = emit(op.reshape(places, (1, 2, positions, 3)))
            later = emit(op.strided_slice(forth, [2], [begin], [positions]))
            back = emit(op.reshape(later, (1, 2, 3, positions - begin)))
            cut = emit(op.strided_slice(back, [3], [0], [keys]))
            weights = emit(op.nn.softmax(emit(op.add(content, cut)), axis=-1))
            out = builder.emit_output(op.matmul(weights, v))
        builder.emit_func_output(out)
    return builder.get()


@pytest.mark.parametrize(
    ("positions", "begin", "keys", "found"), [(8, 1, 5, 1), (7, 1, 5, 0), (8, 2, 3, 0), (9, 2, 3, 1)]
)
def test_rows_that_run_into_each_other_are_no_shift(positions, begin, keys, found):
    """The last key of the first query stands at begin * 3 + keys - 1, which there must be of the positions."""
    after = applied(PASSES, shifted(positions, begin, keys))
    composites = [str(f.attrs["Composite"]) for _, f in after.functions_items() if "Composite" in (f.attrs or {})]
    assert composites.count("rt3.relative_scores") == found
    assert "rt3.attention" in composites
