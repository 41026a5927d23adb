"""What follows from the options before anything is trained: the ratios of block pruning, and what there is to choose from."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from rt3_tvm import device as devices
from rt3_tvm.energy.latency import MatrixLoad, smallest_sparsity
from rt3_tvm.errors import Rt3Error
from rt3_tvm.pattern import Backbone
from rt3_tvm.prune.one_shot import SMALLEST
from rt3_tvm.search.block_pruning import Blocks, cut_backbones, ratios_of
from rt3_tvm.search.setting import Setting
from rt3_tvm.search.space import Space, recipes_of


def plan_ratios(setting: Setting) -> dict[str, float]:
    """Return the ratio of block pruning of each matrix."""
    o = setting.options
    if o.block_sparsity is not None:
        ratio = o.block_sparsity
    elif o.deadline_s:
        loads = [MatrixLoad(*layer.shape, lookup=layer.name in setting.lookups) for layer in setting.layers]
        ratio = smallest_sparsity(setting.latency, loads, setting.frequencies[0], o.deadline_s, min(o.groups))
    else:
        ratio = (o.sparsity or (0.0,))[0]
    return ratios_of(setting.layers, ratio, o.block_sparsity_of)


def planned_backbones(setting: Setting, ratios: dict[str, float]) -> dict[str, Backbone]:
    """Return backbones of the right sizes, before it is known which columns they keep."""
    zero = np.float32(0.0)
    weights = {n.name: np.broadcast_to(zero, n.shape[:: -1 if n.transposed else 1]) for n in setting.layers}
    blocks = Blocks(setting.options.block_rows, setting.options.shape)
    return cut_backbones(setting.layers, weights, ratios, blocks)


def plan_space(setting: Setting, backbones: dict[str, Backbone]) -> Space:
    """Return what can be chosen; a sparsity that was given, or without a search the smallest in time, is the only one."""
    o = setting.options
    shapes = {n: tuple(setting.model.get_parameter(n).shape) for n in setting.skipped}
    rest = tuple(MatrixLoad(s[0], s[1]) for s in shapes.values() if len(s) == 2 and min(s) >= SMALLEST)
    space = Space(
        setting.layers,
        backbones,
        recipes_of(setting.layers, o),
        o.grid,
        setting.lookups,
        rest,
        setting.latency,
        setting.frequencies,
        o.deadline_s,
    )
    grid: tuple[float, ...] | None = None
    if o.sparsity is not None:
        grid = tuple(_within(s, space.backbone_density) for s in o.sparsity)
    elif o.search == "none":
        grid = _smallest(space, setting)
    if grid is not None:
        space = replace(space, grid=grid)
    space.check()
    return space


def _within(sparsity: float, backbone: float) -> float:
    """Return the sparsity within the backbone that makes a sparsity of the whole."""
    within = 1.0 - (1.0 - sparsity) / backbone
    if within < -0.005:
        raise Rt3Error(
            f"`sparsity` {sparsity:g}: the backbone keeps only {backbone:.4f} of the weights: lower `block_sparsity`"
        )
    return max(0.0, within)


def _smallest(space: Space, setting: Setting) -> tuple[float, ...]:
    """Return for each level the smallest sparsity within the backbone that meets the deadline."""
    o = setting.options
    loads = [
        MatrixLoad(*layer.shape, space.backbones[layer.name].density, space.recipes[m][0].shape.group)
        for m, layer in enumerate(setting.layers)
    ]
    found = []
    for hz in setting.frequencies:
        whole = sum(m.weights for m in loads)
        least = 1.0 - sum(m.weights * m.density for m in loads) / whole
        overall = smallest_sparsity(space.latency, [*loads], hz, o.deadline_s, min(o.groups), least)
        found.append(_within(overall, space.backbone_density))
    if any(b - a < 1e-3 for a, b in pairwise(found)):
        needed = ", ".join(
            f"{s:.3f} at {devices.frequency_name(f)}" for s, f in zip(found, setting.frequencies, strict=True)
        )
        raise Rt3Error(f"deadline {1e3 * o.deadline_s:g} ms: the levels do not differ ({needed}): allow less time")
    return tuple(found)
