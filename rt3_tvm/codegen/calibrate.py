"""Calibration: how large each feature gets that a linear layer reads, on inputs that are typical of a model.

From that follow static scales and smoothing: a feature that is often large is divided by a factor before it is quantised, and its
column of weights multiplied by it (SmoothQuant, arXiv 2211.10438; here the factor is the square root of how large the feature is
beside the others, whatever the weights).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.errors import Rt3Error
from rt3_tvm.model import NUMBERS, InputSpec, inputs_of, quiet
from rt3_tvm.tasks.sentences import load_tokenizer, padded, read_sentences
from rt3_tvm.trials import Trial

ROWS = 8
"""Rows of a batch of calibration."""
MOST_SENTENCES = 128
"""Of a text, from its beginning."""
LONGEST = 128
"""Tokens of a sentence, at most."""
TYPICAL = 4
"""Batches of calibration whose first rows a bundle is verified with."""

Inputs = Mapping[str, np.ndarray]
Largest = dict[str, np.ndarray]
"""Of each weight by name, the largest magnitude of each feature that its layer read: (cols,)."""


def read_calibration(path: Path, checkpoint: Checkpoint, specs: tuple[InputSpec, ...]) -> list[Inputs]:
    """Return the batches of a file: NumPy arrays by the name of an input (.npz), or sentences (any other text).

    Raises
    ------
    Rt3Error
        It cannot be read, or an input is missing, unknown, of another shape, outside of what it may be, or no number.
    """
    arrays = _arrays(path, specs) if path.suffix == ".npz" else _sentences(path, checkpoint)
    count = len(next(iter(arrays.values())))
    return [{name: array[i : i + ROWS] for name, array in arrays.items()} for i in range(0, count, ROWS)]


def _arrays(path: Path, specs: tuple[InputSpec, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise Rt3Error(f"`calibrate` '{path}' cannot be read as .npz: {str(error).splitlines()[0]}") from error
    given = {s.name: s for s in specs if not s.internal}
    for name in arrays:
        if name not in given:
            raise Rt3Error(f"`calibrate` '{path}': the model has no input '{name}': it takes {', '.join(given)}")
    first = next(iter(given))
    if first not in arrays:
        raise Rt3Error(f"`calibrate` '{path}': the input '{first}' is missing")
    for name, array in arrays.items():
        _check(array, given[name], f"`calibrate` '{path}': '{name}'")
    shapes = {name: array.shape[: 2 if "length" in given[name].axes else 1] for name, array in arrays.items()}
    if len({shape[0] for shape in shapes.values()}) > 1 or len({s for s in shapes.values() if len(s) > 1}) > 1:
        sizes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        raise Rt3Error(f"`calibrate` '{path}': its inputs are not of one batch and length: {sizes}")
    return {n: a.astype(np.int64) if given[n].dtype != NUMBERS else a.astype(NUMBERS) for n, a in arrays.items()}


def _check(array: np.ndarray, spec: InputSpec, what: str) -> None:
    if array.dtype.kind not in "iufb":
        raise Rt3Error(f"{what} holds no numbers, but {array.dtype}")
    if not array.size:
        raise Rt3Error(f"{what} is empty")
    wanted = spec.shape(max(1, len(array)) if array.ndim else 1, array.shape[1] if array.ndim > 1 else 1)
    if array.shape != wanted:
        axes = " x ".join(map(str, spec.axes))
        raise Rt3Error(f"{what} has the shape {array.shape}, not ({axes})")
    if not np.isfinite(array).all():
        raise Rt3Error(f"{what} has values that are not finite")
    if spec.limit and not (0 <= array.min() and array.max() < spec.limit):
        raise Rt3Error(f"{what} must lie in [0, {spec.limit}): it goes from {array.min()} to {array.max()}")


def _sentences(path: Path, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    folder = checkpoint.tokenizer[0].parent if checkpoint.tokenizer else None
    if folder is None:
        raise Rt3Error(f"`calibrate` '{path}': sentences need a tokenizer, and the checkpoint has none: give an .npz")
    tokenizer = load_tokenizer("calibrate", folder)
    sentences = read_sentences(path)[:MOST_SENTENCES]
    encoded = padded(tokenizer, dict(tokenizer(sentences, truncation=True, max_length=LONGEST)))
    return {name: value.numpy() for name, value in encoded.items()}


def typical_trials(batches: list[Inputs], specs: tuple[InputSpec, ...], batch: int, length: int) -> tuple[Trial, ...]:
    """Return trials of what a model was calibrated with, cut off at a length: what is not typical loses more than int8."""
    trials = []
    for arrays in batches[:TYPICAL]:
        cut = {
            s.name: arrays[s.name][:batch, :length] if "length" in s.axes else arrays[s.name][:batch]
            for s in specs
            if s.name in arrays
        }
        mask = next((cut[s.name] != 0 for s in specs if s.mask and s.name in cut), None)
        tokens = next(iter(cut.values())).shape[:2] if any("length" in s.axes for s in specs) else None
        real = mask if mask is not None else None if tokens is None else np.ones(tokens, np.bool_)
        trials.append(Trial("typical", cut, real))
    return tuple(trials)


def calibrate(checkpoint: Checkpoint, model: torch.nn.Module, batches: list[Inputs]) -> Largest:
    """Run the model of each level on all batches, and return what is largest over them.

    ``model`` has the weights of the last level then.
    """
    taken = {s.name for s in inputs_of(model)}
    largest: Largest = {}
    for level in range(len(checkpoint.levels)):
        checkpoint.mask(model, level)
        with torch.inference_mode(), quiet(), _observed(model, largest) as observer:
            for batch in batches:
                observer.real = batch.get("attention_mask")
                model(**{name: torch.from_numpy(array) for name, array in batch.items() if name in taken})
    return largest


class _Observer(TorchFunctionMode):
    """Sees every product of a tensor and a parameter of a model, whatever module does it."""

    def __init__(self, names: Mapping[int, list[str]], largest: Largest) -> None:
        super().__init__()
        self.names, self.largest = names, largest
        self.real: np.ndarray | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            x, weight = (_argument(args, kwargs or {}, place) for place in PRODUCTS[func])
            names = self.names.get(weight.data_ptr(), []) if isinstance(weight, torch.Tensor) else []
            if names and isinstance(x, torch.Tensor):
                self._see(names, x, weight)
        return func(*args, **(kwargs or {}))

    def _see(self, names: list[str], x: torch.Tensor, weight: torch.Tensor) -> None:
        if weight.ndim != 2 or x.ndim < 2:
            return
        flat = x.detach().reshape(-1, x.shape[-1])
        if self.real is not None and self.real.shape == x.shape[:-1]:
            flat = flat[torch.from_numpy(self.real.reshape(-1) != 0)]
        found = flat.abs().amax(0).float().numpy()
        if not np.isfinite(found).all():
            raise Rt3Error(f"`calibrate`: what '{names[0]}' multiplies is not finite on these inputs")
        for name in names:
            known = self.largest.get(name, found)
            # A weight that is multiplied by both ways reads two kinds of features: nothing is known of either.
            alike = known.shape == found.shape
            self.largest[name] = np.maximum(found, known) if alike else np.zeros(0, found.dtype)


Place = tuple[int, str]
PRODUCTS: dict[Any, tuple[Place, Place]] = {
    torch.nn.functional.linear: ((0, "input"), (1, "weight")),
    torch.addmm: ((1, "mat1"), (2, "mat2")),
    torch.matmul: ((0, "input"), (1, "other")),
    torch.Tensor.matmul: ((0, "self"), (1, "other")),
    torch.Tensor.__matmul__: ((0, "self"), (1, "other")),
    torch.mm: ((0, "input"), (1, "mat2")),
}
"""Functions of PyTorch that multiply by a weight: where their arguments are, and their names."""


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], place: Place) -> Any:
    position, name = place
    return args[position] if position < len(args) else kwargs.get(name)


@contextmanager
def _observed(model: torch.nn.Module, largest: Largest) -> Iterator[_Observer]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter.data_ptr(), []).append(name)
    with _Observer(names, largest) as observer:
        yield observer
