"""Trials: inputs that show whether two forms of a model say the same, and how far their outputs are apart.

One form is always the model as a user calls it, ``model(input_ids=..., attention_mask=...)`` with a two-dimensional mask.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.export.padding import Interface, Padding
from rt3_tvm.model import NUMBERS, InputSpec, OutputSpec, has_length, inputs_of, quiet, random_inputs

TOLERANCES = {NUMBERS: 5e-5, "float16": 2.0**-7, "int8": 2.0**-3}
"""Largest error by what linear layers multiply, as a part of an output's largest value; of int8, root mean squares of both.

Sums in another order move a float32 result by parts of the size of what is summed, so that is what an error is measured against.
Models that are right stay below 1e-5: random weights below 2e-6 up to 16 layers, MiniLM's own, 90 % of them pruned, at 8.5e-6.
An error can be as small as 1e-4: a row of attention that sees one key too many in a small random model. The bound lies between.

float16 keeps 11 bits, and a sum of k products in it is off by some 2^-11 sqrt(k) of its size: 2^-7 for the 256 of a column block,
which is the longest that is summed so. Blocks, residuals and norms are float32, and the errors of layers are independent: six
layers of MiniLM's dimensions with random weights, dense, reach 0.0043.

int8 rounds what a layer reads to 1/127 of a token's largest value, some 1 % of its root mean square, and its weights too. Six
layers add up to several parts in a hundred of an output, which a single value may exceed by a lot: hence the root mean square.
That a level of int8 computes what it should is not known from this bound but from integers: codegen/exact.py.
"""

SMALLEST = 0.1
"""An output whose values are all smaller is measured against this: tanh and its like are approximated to some 1e-7 of 1."""

TILE = 16
"""Kernels work on this many tokens at a time: a length that it divides pads nothing within a tile."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Inputs of one call, and which tokens are real: (batch, length), or None for a model without tokens."""

    name: str
    inputs: dict[str, np.ndarray]
    real: np.ndarray | None

    @property
    def shape(self) -> str:
        """What an error says of the size of the input."""
        if self.real is None:
            return f"batch {len(next(iter(self.inputs.values())))}"
        return "batch {} of {} tokens".format(*self.real.shape)


def trials_of(specs: tuple[InputSpec, ...], batch: int, length: int, below: int = 0) -> tuple[Trial, ...]:
    """Return the trials of a model, or of the code that serves lengths in (``below``, ``length``] and batches up to ``batch``.

    Ids, types and images are random over everything that they may be. Every row of a padded batch has its own number of real
    tokens; beside them stands what a tokenizer pads with.
    """
    rng = np.random.default_rng(length)
    if not has_length(specs):
        return tuple(
            Trial("images", random_inputs(specs, b, length, rng), None) for b in sorted({batch, 1}, reverse=True)
        )
    trials = [_padded(rng, specs, batch, length, side) for side in ("full mask", "right-padded", "left-padded")]
    shorter = shorter_length(below, length)
    if shorter:
        ids = specs[0]
        trials += [_padded(rng, specs, batch, shorter, side) for side in ("right-padded", "left-padded")]
        alone = {ids.name: random_inputs((ids,), 1, shorter, rng)[ids.name]}
        trials.append(Trial("no mask given", alone, np.ones((1, shorter), np.bool_)))
    if batch > 1:
        trials.append(_padded(rng, specs, 1, length, "full mask"))
    masked = any(spec.mask for spec in specs)
    return tuple(t for t in trials if masked or "padded" not in t.name)


def shorter_length(below: int, length: int) -> int:
    """Return a length in (``below``, ``length``) that fills no last tile; 0 where there is none."""
    shorter = length - max(1, (length - below) // 3)
    shorter -= shorter % TILE == 0
    return shorter if shorter > below else 0


def _padded(rng: np.random.Generator, specs: tuple[InputSpec, ...], batch: int, length: int, side: str) -> Trial:
    """Return a trial whose rows are padded on a side, or not at all."""
    counts = 1 + length * (2 * np.arange(batch) + 1) // (
        2 * batch + 1
    )  # each its own where there are enough to choose from
    places = np.arange(length)
    masks = {
        "full mask": np.ones((batch, length), np.bool_),
        "right-padded": places < counts[:, None],
        "left-padded": places >= length - counts[:, None],
    }
    inputs, real = random_inputs(specs, batch, length, rng), masks[side]
    for s in specs:
        if s.mask:
            inputs[s.name] = real.astype(np.int64)
        elif "length" in s.axes:
            inputs[s.name] = np.where(real, inputs[s.name], s.fill)
    return Trial(side, inputs, real)


def padded_trial(specs: tuple[InputSpec, ...], trial: Trial, batch: int, length: int) -> Trial:
    """Return a trial as the runtime hands it to a variant: padded to its batch and length, nothing left out."""
    inputs: dict[str, np.ndarray] = {}
    real = None
    if trial.real is not None:
        real = np.zeros((batch, length), np.bool_)
        real[: trial.real.shape[0], : trial.real.shape[1]] = trial.real
    given = next(iter(trial.inputs.values())).shape
    for spec in specs:
        value = np.full(spec.shape(batch, length), spec.fill, spec.dtype)
        part = tuple(slice(0, n) for n in given[: value.ndim])
        value[part] = trial.inputs.get(spec.name, 1 if spec.mask else spec.fill)
        inputs[spec.name] = value
    return Trial(trial.name, inputs, real)


def cropped(specs: tuple[OutputSpec, ...], outputs: dict[str, np.ndarray], trial: Trial) -> dict[str, np.ndarray]:
    """Return what of outputs for a whole variant belongs to a trial."""
    batch, length = (*next(iter(trial.inputs.values())).shape, 1)[:2]
    sizes = {"batch": batch, "length": length}
    axes = {s.name: tuple(slice(0, sizes.get(str(a))) for a in s.axes) for s in specs}
    return {name: value[axes[name]] for name, value in outputs.items() if name in axes}


def reference(model: torch.nn.Module, trial: Trial) -> dict[str, np.ndarray]:
    """Return what a model gives when it is called as a user calls it."""
    with torch.inference_mode(), quiet():
        try:
            outputs = model(**{name: torch.from_numpy(value) for name, value in trial.inputs.items()})
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise Rt3Error(
                f"{type(model).__name__} fails on {trial.shape}, {trial.name}: {type(error).__name__} {reason}"
            ) from error
    return {name: value.numpy() for name, value in dict(outputs.items()).items() if isinstance(value, torch.Tensor)}


@dataclass(frozen=True)
class Difference:
    """How far an output is from the reference: ``error`` as TOLERANCES measures it; ``reason`` where numbers do not say it."""

    output: str
    error: float
    reason: str = ""
    tolerance: float = TOLERANCES[NUMBERS]

    @property
    def text(self) -> str:
        """What is wrong with the output."""
        return self.reason or f"is off by {self.error:.2g} of its size, {self.tolerance:g} is tolerated"

    @property
    def tolerated(self) -> bool:
        """Whether the output is right."""
        return not self.reason and self.error <= self.tolerance


def compare(
    model: torch.nn.Module,
    specs: tuple[OutputSpec, ...],
    trial: Trial,
    got: dict[str, np.ndarray],
    want: dict[str, np.ndarray],
    dtype: str = NUMBERS,
) -> Difference:
    """Return :func:`worst_difference`, but for outputs without tokens that in PyTorch itself read what is padded.

    Such an output is made of a padded token, say the first where a classifier is padded on the left. What a model makes of
    padding is its own affair, so an output that changes with it is too. ``dtype``: of the level, by which it is measured.
    """
    measure, tolerance = MEASURES.get(dtype, relative_error), TOLERANCES[dtype]
    found = replace(worst_difference(specs, trial, got, want, measure), tolerance=tolerance)
    if found.tolerated or trial.real is None or trial.real.all():
        return found
    with disturbed(model, trial.real):
        other = reference(model, _other_padding(inputs_of(model), trial))
    left_out = {
        s.name
        for s in specs
        if "length" not in s.axes and relative_error(other[s.name], want[s.name]) > SMALLEST_CHANGE
    }
    specs = tuple(s for s in specs if s.name not in left_out)
    got, want = ({n: v for n, v in side.items() if n not in left_out} for side in (got, want))
    return replace(worst_difference(specs, trial, got, want, measure), tolerance=tolerance)


SMALLEST_CHANGE = 1e-3
"""An output that reads a padded token changes by more than this, of its size, when that becomes another."""


def _other_padding(specs: tuple[InputSpec, ...], trial: Trial) -> Trial:
    """Return a trial with other tokens where the mask hides them."""
    assert trial.real is not None
    inputs = dict(trial.inputs)
    for s in (s for s in specs if s.limit and not s.mask and s.name in inputs):
        inputs[s.name] = np.where(trial.real, inputs[s.name], (inputs[s.name] + 1) % s.limit)
    return Trial(trial.name, inputs, trial.real)


@contextmanager
def disturbed(model: torch.nn.Module, real: np.ndarray) -> Iterator[None]:
    """Add noise to what the norms of a model give for padded tokens: other ids do not reach models that zero padding first."""
    padded = torch.from_numpy(~real)[..., None]
    noise = torch.Generator().manual_seed(0)

    def disturb(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or output.shape[:-1] != padded.shape[:-1]:
            return None
        return output + padded * torch.randn(output.shape, generator=noise, dtype=output.dtype)

    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    hooks = [module.register_forward_hook(disturb) for module in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest error over the largest finite value, SMALLEST at least; infinite where only one of them is finite."""
    if not want.size:
        return 0.0
    size = np.abs(want, where=np.isfinite(want), out=np.zeros(want.shape)).max()
    return float(_errors(got, want).max() / max(SMALLEST, size))


def rms_error(got: np.ndarray, want: np.ndarray) -> float:
    """Return the same of root mean squares."""
    if not want.size:
        return 0.0
    size = np.square(want, where=np.isfinite(want), out=np.zeros(want.shape)).mean() ** 0.5
    return float(np.square(_errors(got, want)).mean() ** 0.5 / max(SMALLEST, size))


def _errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        error = np.where(got == want, 0.0, np.abs(got - want))
    return np.nan_to_num(error, nan=np.inf, posinf=np.inf)


Measure = Callable[[np.ndarray, np.ndarray], float]
MEASURES: dict[str, Measure] = {"int8": rms_error}
"""How an error is measured, by element type, where not by :func:`relative_error`."""


def worst_difference(
    specs: tuple[OutputSpec, ...],
    trial: Trial,
    got: dict[str, np.ndarray],
    want: dict[str, np.ndarray],
    measure: Measure = relative_error,
) -> Difference:
    """Return the difference of the output that is furthest from the reference.

    Of an output with an axis of tokens only what belongs to real tokens counts: what a model makes of padding is its own affair,
    NaN where such a row sees nothing. Outputs without one are compared whole.

    Raises
    ------
    JobError
        The model itself gives NaN for a real token.
    """
    names = {s.name for s in specs}
    for name in (*(want.keys() - names), *(names - want.keys())):
        there, missing = ("the model", "the compiled one") if name in want else ("the compiled one", "the model")
        return Difference(name, np.inf, f"{there} has it, {missing} does not")
    found = (_difference(s, trial, got[s.name], want[s.name], measure) for s in specs)
    return max(found, key=lambda d: d.error, default=Difference("", 0.0))


def _difference(spec: OutputSpec, trial: Trial, got: np.ndarray, want: np.ndarray, measure: Measure) -> Difference:
    if got.shape != want.shape:
        return Difference(spec.name, np.inf, f"its shape is {got.shape}, not {want.shape}")
    real = real_elements(spec, trial, want.shape)
    if np.isnan(want[real]).any():
        raise JobError(f"PyTorch gives NaN in output '{spec.name}' for real tokens on {trial.shape}, {trial.name}")
    return Difference(spec.name, measure(got[real], want[real]))


def real_elements(spec: OutputSpec, trial: Trial, shape: tuple[int, ...]) -> np.ndarray:
    """Return which elements of an output belong to real tokens only, along every axis that it has of tokens."""
    real = np.ones(shape, np.bool_)
    axes = list(spec.axes)
    if trial.real is None or "batch" not in axes:
        return real
    batch = axes.index("batch")
    for i, axis in enumerate(axes):
        if axis == "length":
            tokens = trial.real if batch < i else trial.real.T
            real &= tokens.reshape([n if d in (batch, i) else 1 for d, n in enumerate(shape)])
    return real


def check_exported(model: torch.nn.Module, program: torch.export.ExportedProgram, batch: int, length: int) -> None:
    """Compare a graph that was exported for one shape with its model, on padded and on shorter inputs too.

    The model is in evaluation mode, as it was when it was exported.

    Raises
    ------
    Rt3Error
        The graph gives other values: what is compiled from it would be wrong, however it is trained.
    """
    interface = Interface.of(model)
    specs, outputs = interface.specs, interface.outputs
    below = 0 if interface.padding is Padding.MASKED else length - 1
    graph = program.module()
    for trial in trials_of(specs, batch, length, below):
        got = cropped(outputs, reference(graph, padded_trial(specs, trial, batch, length)), trial)
        want = reference(model, trial)
        found = compare(model, outputs, trial, got, want)
        if not found.tolerated:
            _refuse_random(model, outputs, trial, want)
            raise Rt3Error(
                f"{type(model).__name__} cannot be compiled: torch.export changes it, its output '{found.output}' {found.text} "
                f"({trial.name}, {trial.shape})"
            )


def _refuse_random(
    model: torch.nn.Module, outputs: tuple[OutputSpec, ...], trial: Trial, want: dict[str, np.ndarray]
) -> None:
    """Refuse a model whose outputs are others when it runs again, as those of one are that hides patches at random."""
    found = compare(model, outputs, trial, reference(model, trial), want)
    if not found.tolerated:
        raise Rt3Error(
            f"{type(model).__name__} cannot be compiled: it draws random numbers, its output '{found.output}' {found.text} "
            "from one run to the next"
        )
