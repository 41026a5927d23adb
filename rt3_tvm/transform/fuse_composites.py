"""Phase 2: group the operators of each composite into one function."""

import tvm
from tvm import relax

from rt3_tvm.transform.composites import COMPOSITES
from rt3_tvm.transform.fuse_attention import FuseAttention


def fuse_composites_passes() -> list[tvm.transform.Pass]:
    """Return phase 2: TVM's fusion of data-flow patterns with our table, then our own pass for attention."""
    patterns = [row.fusion_pattern() for row in COMPOSITES.values() if row.pattern is not None]
    return [
        relax.transform.FuseOpsByPattern(patterns, bind_constants=False),
        FuseAttention(),
        relax.transform.EliminateCommonSubexpr(),  # layers that share a bias have each taken it apart
        relax.transform.DeadCodeElimination(["main"]),
    ]
