"""Pruning: from a model to a checkpoint."""

from typing import TYPE_CHECKING

from rt3_tvm.lazy import offer
from rt3_tvm.prune.options import PruneOptions

if TYPE_CHECKING:
    from rt3_tvm.prune.one_shot import prune_one_shot

__all__ = ["PruneOptions", "prune_one_shot"]
__getattr__ = offer(__name__, {"prune_one_shot": ("rt3_tvm.prune.one_shot", "prune_one_shot")})
