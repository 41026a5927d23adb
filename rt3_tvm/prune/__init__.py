"""Pruning: from a model to a checkpoint."""

from rt3_tvm.prune.one_shot import PruneOptions, prune_one_shot

__all__ = ["PruneOptions", "prune_one_shot"]
