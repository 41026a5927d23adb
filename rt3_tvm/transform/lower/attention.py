"""Attention to its kernel."""

from dataclasses import replace

from tvm import relax

from rt3_tvm.schedules.attention_blocks import attention_element
from rt3_tvm.schedules.attention_mask import StaticMask
from rt3_tvm.schedules.attention_shape import AttentionShape
from rt3_tvm.schedules.layout import REAL
from rt3_tvm.transform.composites import Composite, static_shape
from rt3_tvm.transform.context import ATTENTION
from rt3_tvm.transform.graph import real
from rt3_tvm.transform.layouts import Arguments, Layouts, Tokens


def lower_attention(lowering: Layouts, var: relax.Var, _row: Composite, func: relax.Function, args: Arguments) -> bool:
    """Lower attention by what phase 2 has said of it."""
    shape, context = _shape(func, args), lowering.context
    shape = replace(shape, element=attention_element(shape, context.cpu, context.element_of(ATTENTION)))
    operands = [lowering.as_heads_first(args[r]) for r in "qkv"]
    biases = [
        lowering.as_plain(args["key_bias"]) if "key_bias" in args else real([[[[0.0]]]]),
        lowering.as_score_tiles(args["score_bias"]) if "score_bias" in args else real([[[0.0]]]),
    ]
    out = Tokens(shape.batch, shape.length, shape.heads * shape.v_dim).ty()
    family = "attention" if shape.element is REAL else f"attention_{shape.element.dtype}"
    lowering.heads_first[var] = lowering.kernel(family, (shape, context.cpu), [*operands, *biases], out)
    return True


def _shape(func: relax.Function, args: Arguments) -> AttentionShape:
    """Return the sizes and what becomes of a score."""
    (batch, heads, queries, dim), (_, kv_heads, keys, v_dim) = (static_shape(args[r]) for r in "qv")

    def spread(role: str) -> tuple[int, int] | None:
        return (static_shape(args[role])[0], static_shape(args[role])[1]) if role in args else None

    return AttentionShape(
        batch,
        queries,
        heads,
        dim,
        float(func.attrs["rt3.scale"]),
        StaticMask.of(func.attrs["rt3.mask"]) if "rt3.mask" in func.attrs else None,
        spread("key_bias"),
        spread("score_bias"),
        kv_heads,
        v_dim,
        keys,
        float(func.attrs["rt3.soft_cap"]),
    )
