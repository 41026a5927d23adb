"""Layers of int8 and attention in float16 against NumPy: each of their calls by itself, and in float32 what is between them.

A value that is off by nothing worth a name can be rounded to another step, and what is off by a step moves the steps of all
layers behind it. So the outputs of a level of int8 cannot be compared with PyTorch's as tightly as a wrong kernel would want. Its
kernels are run one by one instead. What a quantiser or a layer writes is compared with what NumPy makes, in integers, of the very
numbers that it read. Then what the layer would be in float32 is put in the place of its result: what comes out in the end is as
tight as a level of float32 is.

Attention in float16 likewise: a call is compared with what NumPy makes of what it read, rounded where the kernel rounds, and what
it would be without rounding is put in the place of its result. How far that is away tells whether float16 bears its scores.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from tvm import relax, tirx

from rt3_tvm.codegen.kernels import KernelTable
from rt3_tvm.codegen.plan import Place, Step
from rt3_tvm.codegen.walk import Walk
from rt3_tvm.codegen.weights import WeightStore
from rt3_tvm.model import InputSpec
from rt3_tvm.schedules import ACTIVATION_ATTR
from rt3_tvm.schedules.attention_blocks import AttentionBlocks
from rt3_tvm.schedules.attention_float16 import SHAPE_ATTR
from rt3_tvm.schedules.attention_numpy import AttentionInputs, exact_attention, rounded_attention
from rt3_tvm.schedules.attention_shape import AttentionShape
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.dot_products import DOT_PRODUCTS
from rt3_tvm.schedules.int8_lines import PLACES_ATTR, QUADS_ATTR, SERVED_ATTR, served_tokens
from rt3_tvm.schedules.int8_packing import LARGEST, LEAST, quantised, row_scales
from rt3_tvm.transform.context import WeightRef

ROUNDING = 1e-5
"""How far a call may be off, as a part of the largest value of its result: sums are exact, what is made of them is float32."""
STEP = 2.0**-10
"""The same of attention in float16: a weight beside the middle between two of its numbers may become either."""
BORNE = 2.0**-7
"""How far rounding may move the result of attention, as root mean squares: random heads of MiniLM's size take a quarter of it."""
QUANTISERS = ("quantise", "quantise_static")
ROUNDED = "attention_float16"
TIE = 1e-3
"""How far behind the middle between two steps a number may be that is rounded to the farther one: 1 / scale is rounded too."""

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}


class Inexact(Exception):
    """A call that computes something else than NumPy does; its text says which."""


class TooCoarse(Inexact):
    """A call that computes what it should, of numbers that float16 does not bear."""


@dataclass(frozen=True, eq=False)
class _Read:
    """What a layer reads: real numbers and steps, both (tokens, features), and the scale of each token."""

    real: np.ndarray
    steps: np.ndarray
    scales: np.ndarray


@dataclass(eq=False)
class ExactWalk:
    """A walk over a variant that checks calls on quantised activations, and of attention in float16, and goes on from float32.

    What pads a tile and is not computed is checked to be zeros. ``calls``: how many calls on quantised activations were checked;
    ``worst``: what the worst of them was off by, as ROUNDING
    measures it; ``rounded`` and ``farthest``: of attention the same, as STEP and as BORNE measure it. ``fused``: whether the
    kernels' multiply-adds of float16 are rounded once.
    """

    walk: Walk
    table: KernelTable
    store: WeightStore
    cpu: CpuShape
    fused: bool
    calls: int = 0
    worst: float = 0.0
    rounded: int = 0
    farthest: float = 0.0
    _read: dict[int, _Read] = field(default_factory=dict)
    _weights: dict[WeightRef, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict)

    def run(self, specs: tuple[InputSpec, ...], inputs: dict[str, np.ndarray]) -> Iterator[Step]:
        """Yield each step when it has run, was checked and put right.

        Raises
        ------
        Inexact
            A call that is wrong.
        """
        followers = [following for _, following in pairwise((*self.walk.plan.steps, None))]
        for step, following in zip(self.walk.run(specs, inputs), followers, strict=True):
            func = self.table.functions[step.kernel]
            family = self.table.kernels[step.kernel].family
            if family in QUANTISERS:
                self._quantiser(step, func)
            elif family == ROUNDED:
                self._attention(step, func)
            elif step.weight and step.weight.dot and (following is None or following.args != step.args):
                self._layer(step, step.weight, func)  # all of its parts have run
            yield step

    def read(self, place: Place, ty: relax.TensorType) -> np.ndarray:
        """Return a copy of a tensor in the workspace."""
        return self.walk.read(place, ty)

    def _quantiser(self, step: Step, func: tirx.PrimFunc) -> None:
        # What is read can be a constant: positions that a layer multiplies.
        x, lines, scales = (self.walk.read(step.args[i], func.params[i].ty) for i in (0, -2, -1))
        layout = DOT_PRODUCTS[self.cpu.dot].lines(lines.shape[2], QUADS_ATTR in func.attrs)
        real, placed = _tokens(_served(x, func)), _tokens(layout.unpack(lines, len(x)))
        whole = np.isfinite(real).all(axis=1)
        wanted, scaled = self._scaled(step, func, real)
        self._check(step, "scale", scales.reshape(-1)[whole], wanted[whole])
        table = np.arange(real.shape[1])
        if PLACES_ATTR in func.attrs:
            table = self.walk.read(step.args[-3], func.params[-3].ty)
        off = np.abs(placed - np.clip(scaled, -LARGEST, LARGEST)[:, table])[whole]
        if off.size and off.max() > 0.5 + TIE:
            raise Inexact(f"{self._name(step)} is off by {off.max():.3g} steps, 0.5 is rounding")
        self.calls += 1
        steps = np.empty(real.shape, placed.dtype)
        steps[:, table] = placed
        self._read[step.args[-2].offset] = _Read(real, steps, scales.reshape(-1))

    def _scaled(self, step: Step, func: tirx.PrimFunc, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what a step of each token is worth, and the numbers in steps that are not rounded."""
        if self.table.kernels[step.kernel].family == "quantise":  # nothing is calibrated
            scales = np.maximum(np.abs(real).max(axis=1), np.float32(LEAST)) / np.float32(LARGEST)
            return scales, real.astype(np.float64) / scales[:, None]
        factors = self.walk.read(step.args[1], func.params[1].ty)
        return np.full(len(real), factors[-1]), real.astype(np.float64) * factors[:-1]

    def _layer(self, step: Step, ref: WeightRef, func: tirx.PrimFunc) -> None:
        read, place = self._read[step.args[0].offset], step.args[-1]
        weight, numbers, scales = self._numbers(ref)
        bias = self.store.checkpoint.weights[ref.bias] if ref.bias else np.zeros(len(weight), np.float32)
        activation = ACTIVATIONS[str(func.attrs[ACTIVATION_ATTR])]
        # float64 holds these sums exactly, and is multiplied by a library.
        sums = read.steps.astype(np.float64) @ numbers.T.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            wanted = sums.astype(np.float32) * (read.scales[:, None] * scales) + bias
            real = read.real @ weight.T + bias
        got = self.walk.read(place, func.params[-1].ty)
        whole = np.isfinite(read.real).all(axis=1)
        exact, floats = (_served(_tiles(_activated(activation, y), got.shape), func) for y in (wanted, real))
        self._check(step, "result", _tokens(got)[whole], _tokens(exact)[whole])
        self.calls += 1
        self.walk.write(place, floats)

    def _attention(self, step: Step, func: tirx.PrimFunc) -> None:
        shape = AttentionShape.of(func.attrs[SHAPE_ATTR])
        *read, got = (self.walk.read(place, p.ty) for place, p in zip(step.args[:6], func.params[:6], strict=True))
        inputs, tiles = AttentionInputs(*read), AttentionBlocks.of(shape, self.cpu).tiles(shape.layout.token_tile)
        exact = exact_attention(shape, inputs)
        rounded = rounded_attention(shape, inputs, tiles, self.fused)
        whole = np.isfinite(exact)
        if not np.isfinite(rounded[whole]).all():
            raise TooCoarse(f"{self._name(step)}: numbers or scores are beyond what float16 holds, 65504")
        self._check(step, "result", got[whole], rounded[whole], STEP)
        size = np.square(exact[whole]).mean() ** 0.5 if whole.any() else 0.0
        off = float(np.square(rounded[whole] - exact[whole]).mean() ** 0.5 / size) if size else 0.0
        if off > BORNE:
            raise TooCoarse(
                f"{self._name(step)}: rounding moves its result by {off:.2g} of its size, {BORNE:.2g} is borne"
            )
        self.rounded, self.farthest = self.rounded + 1, max(self.farthest, off)
        self.walk.write(step.args[5], exact.astype(np.float32))

    def _numbers(self, ref: WeightRef) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the weight of a layer (rows, cols) as it is, in steps, and what a step of each row is worth."""
        if ref not in self._weights:
            smoothed, largest = self.store.smoothed(ref), DOT_PRODUCTS[ref.dot].largest
            scales = row_scales(smoothed, largest)
            self._weights[ref] = self.store.multiplied(ref), quantised(smoothed, scales, largest), scales
        return self._weights[ref]

    def _check(self, step: Step, what: str, got: np.ndarray, wanted: np.ndarray, bound: float = ROUNDING) -> None:
        if not got.size:
            return
        error = float(
            np.abs(got.astype(np.float64) - wanted).max() / max(np.abs(wanted).max(), np.finfo(np.float32).tiny)
        )
        if not error <= bound:
            raise Inexact(f"{self._name(step)}: its {what} is off by {error:.2g} of its size, {bound:.2g} is rounding")
        if bound == ROUNDING:
            self.worst = max(self.worst, error)

    def _name(self, step: Step) -> str:
        weight = f" of '{step.matrix}'" if step.matrix else ""
        return f"{self.table.kernels[step.kernel].symbol}{weight}"


def _tokens(tiles: np.ndarray) -> np.ndarray:
    """Return (tiles, features, tokens of a tile) as (tokens, features)."""
    return tiles.transpose(0, 2, 1).reshape(-1, tiles.shape[1])


def _tiles(tokens: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return (tokens, features) as tiles of a shape."""
    return tokens.reshape(shape[0], shape[2], -1).transpose(0, 2, 1)


def _served(tiles: np.ndarray, func: tirx.PrimFunc) -> np.ndarray:
    """Return tiles of which the tokens are left that a kernel computes."""
    return served_tokens(tiles, int(func.attrs[SERVED_ATTR]))


def _activated(activation: Callable[[torch.Tensor], torch.Tensor], values: np.ndarray) -> np.ndarray:
    return activation(torch.from_numpy(np.ascontiguousarray(values, np.float32))).numpy()
