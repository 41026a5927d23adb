"""Phase 2: group the operators of each composite into one function."""

import tvm
from tvm import relax

from rt3_tvm.transform.composites import COMPOSITES


def fuse_composites_passes() -> list[tvm.transform.Pass]:
    """Return phase 2: TVM's own fusion by data-flow patterns, with our table."""
    return [
        relax.transform.FuseOpsByPattern([row.fusion_pattern() for row in COMPOSITES.values()], bind_constants=False)
    ]
