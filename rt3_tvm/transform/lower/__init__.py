"""How each kind of composite becomes kernels, one file a family, and which single operators stay in our layout.

A lowering binds what stands for ``var`` in one of the layouts and returns True; it returns False for what it has no kernel for,
which is then emitted as it stands. Products of run-time tensors (matmul.py) are no composite: phase 5 legalises them.
"""

from collections.abc import Callable

from tvm import relax

from rt3_tvm.transform.composites import Composite, CompositeKind
from rt3_tvm.transform.layouts import Arguments, Layouts
from rt3_tvm.transform.lower.attention import lower_attention
from rt3_tvm.transform.lower.embedding import lower_embedding
from rt3_tvm.transform.lower.linear import lower_linear
from rt3_tvm.transform.lower.norm import lower_norm
from rt3_tvm.transform.lower.operators import lower_elementwise, lower_reshape, lower_split, lower_transpose
from rt3_tvm.transform.lower.relative_scores import lower_relative_scores
from rt3_tvm.transform.lower.rotary import lower_rotary

COMPOSITE_LOWERINGS: dict[CompositeKind, Callable[[Layouts, relax.Var, Composite, relax.Function, Arguments], bool]] = {
    "linear": lower_linear,
    "attention": lower_attention,
    "relative_scores": lower_relative_scores,
    "rotary": lower_rotary,
    "norm": lower_norm,
    "embedding": lower_embedding,
}
"""By the kind of composite."""

ELEMENTWISE = (
    "add subtract multiply divide maximum minimum negative exp tanh sigmoid sqrt rsqrt "
    "nn.gelu nn.gelu_tanh nn.relu nn.silu"
).split()
"""Operators that mean the same in every layout."""

OPERATOR_LOWERINGS: dict[str, Callable[[Layouts, relax.Var, relax.Call], bool]] = {
    "relax.reshape": lower_reshape,
    "relax.permute_dims": lower_transpose,
    "relax.split": lower_split,
    **{f"relax.{name}": lower_elementwise for name in ELEMENTWISE},
}
"""By the name of the operator."""
