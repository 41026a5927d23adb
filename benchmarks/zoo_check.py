"""One row of the zoo, in a process of its own: build, save, load, prune, compile, and compare each level with PyTorch.

The comparison is the sweep's own: the reference is the class that was saved, read by transformers, with each level's masks
multiplied in, called as a user calls it (a two-dimensional mask, or none). An error is the largest difference over the largest
value of the reference, over real tokens; what a model gives for padding is undefined.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from zoo_rows import SMALL, Row, parameters_of, small_config

from rt3_tvm import model as models
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.codegen import CompileOptions, compile_checkpoint
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.prune import PruneOptions, prune_one_shot
from rt3_tvm.runtime import Bundle, load
from rt3_tvm.trials import disturbed

TOLERANCE = 1e-4
"""Largest error of a right row. Float32 sums in another order stay below 1e-5 on all but a few of these models."""

SPARSITY = {"whole": (0.0, 0.5, 0.8), "quick": (0.8,)}
BATCH = 2
LARGEST = 12_000_000
"""Parameters of the largest model that is tried: what stays larger has entries that nobody made small."""

SHORTER = ", shorter"
"""How the labels of cases end whose length is none that was compiled."""

Inputs = dict[str, np.ndarray]
Record = dict[str, Any]


class LeftOut(Exception):
    """The row is none of this sweep's: it cannot be built, or it takes other inputs than one kind of data."""


def check(row: Row, stage: Callable[[str], None], effort: str = "whole") -> Record:
    """Return the outcome of a row and what it says; ``stage`` is called as each step begins, so that a crash has a place.

    ``effort``: "whole", "quick" (the sparsest level at the first length, unverified) or "control" (torch.export alone).
    """
    start = time.perf_counter()
    record: Record = {"outcome": "right", "detail": "", "stage": ""}
    reference: torch.nn.Module | None = None

    def begin(name: str) -> None:
        record["stage"] = name
        stage(name)

    with tempfile.TemporaryDirectory(prefix="rt3-zoo-") as folder:
        try:
            begin("build")
            reference = saved(row, folder)
            record["parameters"] = sum(p.numel() for p in reference.parameters())
            if effort == "control":
                begin("control")
                record["control"] = _export_fault(reference, row)
            else:
                if effort == "quick":
                    row = replace(row, lengths=row.lengths[:1])
                _compile_and_compare(row, Path(folder), SPARSITY[effort], begin, record)
        except LeftOut as error:
            record |= {"outcome": "left out", "detail": str(error)}
        except (Rt3Error, JobError) as error:
            record |= {"outcome": "refused", "detail": str(error)}
        except Exception as error:
            # What fails before the model is ours to load says nothing of us.
            outcome = "left out" if record["stage"] == "build" else "traceback"
            record |= {"outcome": outcome, "detail": f"{type(error).__name__}: {_line(error)}"}
        if record["outcome"] in ("refused", "traceback") and reference is not None:
            begin("control")
            fault = _export_fault(reference, row)
            record["stage"] = ""
            if fault:
                record |= {"outcome": "export-refused", "control": fault}
    return record | {"seconds": round(time.perf_counter() - start, 1)}


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]


def built(row: Row) -> torch.nn.Module:
    """Return a row's model with random weights of a fixed seed."""
    taken = parameters_of(row.model_class)
    kinds = [k for k in ("input_ids", "pixel_values", "input_features", "input_values") if k in taken]
    if len(kinds) != 1:
        raise LeftOut(f"takes {' and '.join(kinds)} at once" if kinds else "takes neither text nor an image nor sound")
    model_class = getattr(transformers, row.model_class)
    torch.manual_seed(0)
    try:
        config = small_config(model_class.config_class, row.config)
        with torch.device("meta"):
            size = sum(p.numel() for p in model_class(config).parameters())
        if size > LARGEST:
            raise LeftOut(f"{size / 1e6:.0f} million parameters in its small configuration")
        model = model_class(config).eval()
    except LeftOut:
        raise
    except Exception as error:
        raise LeftOut(f"has no small configuration: {type(error).__name__} {_line(error)}") from error
    randomise(model)
    return model


def saved(row: Row, folder: str) -> torch.nn.Module:
    """Save a row's model and return it as transformers reads it back, if it runs on one kind of data alone."""
    with models.quiet():
        model = built(row)
    try:
        with models.quiet():
            model.save_pretrained(folder)
        reference = _reference(row, folder)
    except Exception as error:
        raise LeftOut(f"cannot be saved and read back: {type(error).__name__} {_line(error)}") from error
    _try_reference(reference, row)
    return reference


def randomise(model: torch.nn.Module) -> None:
    """Give every parameter values that matter: padding rows, biases and norms too, which models initialise to 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim >= 2 and parameter.shape[-1] > 1:
                    parameter.copy_(noise / parameter[0].numel() ** 0.5)
                else:
                    parameter.add_(0.1 * noise)


def _reference(row: Row, folder: str) -> torch.nn.Module:
    with models.quiet():
        return getattr(transformers, row.model_class).from_pretrained(folder, dtype=torch.float32).eval()


def _masked(row: Row, folder: Path, checkpoint: Checkpoint, level: int) -> torch.nn.Module:
    """Return the saved model with a level's masks on its weights, wherever each is used."""
    model = _reference(row, str(folder))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, matrix in checkpoint.levels[level].matrices.items():
        parameters[name].data.copy_(torch.from_numpy(matrix.masked(parameters[name].detach().numpy())))
    return model


def _call(model: torch.nn.Module, inputs: Inputs) -> Inputs:
    """Return what a model gives, by name, tensors only."""
    with torch.inference_mode():
        outputs = model(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    return {k: v.numpy() for k, v in outputs.items() if isinstance(v, torch.Tensor)}


def _try_reference(model: torch.nn.Module, row: Row) -> None:
    label, inputs = next(cases(model, row.lengths[0]))
    try:
        values = _call(model, inputs)
    except Exception as error:
        raise LeftOut(f"fails on {', '.join(inputs)} alone: {type(error).__name__} {_line(error)}") from error
    if not values or not all(np.isfinite(v).all() for v in values.values()):
        raise LeftOut(f"PyTorch gives no finite values for the {label} case")


def _export_fault(model: torch.nn.Module, row: Row) -> str:
    """Return why torch.export refuses the plain model, without us; an empty text where it takes it."""
    _, inputs = next(cases(model, row.lengths[0]))
    keywords: Record = {k: torch.from_numpy(v) for k, v in inputs.items()}
    if hasattr(model.config, "use_cache"):
        keywords["use_cache"] = False
    try:
        with torch.no_grad(), models.quiet():
            torch.export.export(model, (), keywords)
    except Exception as error:
        return f"{type(error).__name__}: {_line(error)}"
    return ""


def _compile_and_compare(
    row: Row, folder: Path, sparsity: tuple[float, ...], begin: Callable[[str], None], record: Record
) -> None:
    begin("load")
    loaded = models.load(str(folder))
    if type(loaded).__name__ != row.model_class:
        record |= {"outcome": "wrong", "detail": f"loaded as {type(loaded).__name__}: the head is lost"}
        return
    _give_shape(loaded, row)
    begin("prune")
    checkpoint = prune_one_shot(loaded, PruneOptions(sparsity), folder)
    begin("compile")
    has_length = models.has_length(models.inputs_of(loaded))
    lengths = row.lengths if has_length else CompileOptions.lengths
    options = CompileOptions(
        lengths=lengths,
        batch=BATCH,
        cache=False,
        frequencies=tuple(1e9 - 1e8 * i for i in range(len(sparsity))),
        verify=len(sparsity) > 1,
    )
    report = compile_checkpoint(checkpoint, folder / "model.so", options)
    record |= {"verified": "skipped" not in report.metadata["verified"], "exact": report.metadata["padding"] == "exact"}
    begin("run")
    with load(folder / "model.so") as bundle:
        worst = _compare(row, folder, checkpoint, bundle)
        record["elementwise"] = _elementwise(bundle, lengths[-1] if has_length else 1)
    record |= {"error": worst[0], "detail": worst[1]}
    if worst[0] > TOLERANCE or np.isnan(worst[0]):
        record["outcome"] = "wrong"
    else:
        record["detail"] = ""


def _give_shape(model: torch.nn.Module, row: Row) -> None:
    """Say the shape of an image or a sound where the configuration leaves it open, as ``rt3 prune --input-shape`` does."""
    if "input_ids" in parameters_of(row.model_class):
        return
    try:
        models.inputs_of(model)
    except Rt3Error:
        _, inputs = next(cases(model, row.lengths[0]))
        (values,) = inputs.values()
        models.give_input_shape(model, values.shape[1:])


def _compare(row: Row, folder: Path, checkpoint: Checkpoint, bundle: Bundle) -> tuple[float, str]:
    """Return the largest error of all levels, lengths and cases, and where it is."""
    worst = (0.0, "")
    for level in range(len(checkpoint.levels)):
        model = _masked(row, folder, checkpoint, level)
        bundle.set_level(level)
        for length in row.lengths if bundle.max_length > 1 else (1,):
            for label, inputs in cases(model, length):
                try:
                    want = _call(model, inputs)
                except Exception:
                    continue
                if label.endswith(SHORTER) and bundle.metadata["padding"] == "exact":
                    if not _refuses(bundle, inputs):
                        return float("inf"), f"{label}: taken, although padding shows in the outputs"
                    continue
                got = bundle(**inputs)
                if lost := want.keys() ^ got.keys():
                    return float("inf"), f"outputs {', '.join(sorted(lost))} on one side only"
                for name, value in want.items():
                    mask = inputs.get("attention_mask")
                    error = error_of(got[name], value, mask)
                    if error > TOLERANCE and mask is not None and _reads_padding(model, inputs, name, value):
                        continue
                    if not error <= worst[0]:
                        worst = (error, f"{name}, level {level}, length {length}, {label}: {error:.1e}")
    return worst


def _reads_padding(model: torch.nn.Module, inputs: Inputs, name: str, value: np.ndarray) -> bool:
    """Return whether an output without tokens is made of a padded one, say of the first where padding is on the left."""
    real = inputs["attention_mask"].astype(bool)
    if real.all() or value.shape[:2] == real.shape:
        return False
    with disturbed(model, real):
        return error_of(_call(model, inputs)[name], value, None) > TOLERANCE


def _refuses(bundle: Bundle, inputs: Inputs) -> bool:
    try:
        bundle(**inputs)
    except Rt3Error:
        return True
    return False


def error_of(got: np.ndarray, want: np.ndarray, mask: np.ndarray | None) -> float:
    """Return the largest difference over the largest value of the reference, over real tokens; infinite for NaN."""
    if got.shape != want.shape:
        return float("inf")
    if mask is not None and want.shape[:2] == mask.shape:
        got, want = got[mask.astype(bool)], want[mask.astype(bool)]
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-6)
    return float(error) if np.isfinite(error) else float("inf")


def cases(model: torch.nn.Module, length: int) -> Iterator[tuple[str, Inputs]]:
    """Yield labelled inputs as a user gives them: at a compiled length and a shorter one, with each kind of mask and without."""
    taken = parameters_of(type(model).__name__)
    rng = np.random.default_rng(length)
    if "input_ids" not in taken:
        yield from _fixed_cases(model, taken, rng)
        return
    for tokens, kinds in ((length, ("full", "right", "left")), (length - 5, ("full", "right", "left", "no mask"))):
        for kind in kinds:
            ids, mask = _text(model, tokens, kind, rng)
            inputs = {"input_ids": ids, "attention_mask": mask}
            if kind == "no mask" or "attention_mask" not in taken:
                del inputs["attention_mask"]
            if len(inputs) == 2 or kind in ("full", "no mask"):
                yield f"{kind} at {tokens}{'' if tokens == length else SHORTER}", inputs


def _text(model: torch.nn.Module, tokens: int, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return ids without special tokens, padded in the second row, and their mask."""
    config = model.config.get_text_config()
    padding = getattr(config, "pad_token_id", None)
    padding = padding if isinstance(padding, int) else 0
    special = {v for k, v in vars(config).items() if k.endswith("token_id") and isinstance(v, int)} | {padding}
    ids = rng.choice(np.setdiff1d(np.arange(config.vocab_size), list(special)), (BATCH, tokens)).astype(np.int64)
    mask = np.ones_like(ids)
    part = {"right": slice(tokens - tokens // 3, None), "left": slice(0, tokens // 3)}.get(kind, slice(0, 0))
    mask[1, part], ids[1, part] = 0, padding
    return ids, mask


def _fixed_cases(
    model: torch.nn.Module, taken: dict[str, Any], rng: np.random.Generator
) -> Iterator[tuple[str, Inputs]]:
    config = model.config.get_text_config() if not hasattr(model.config, "image_size") else model.config
    name = next(n for n in ("pixel_values", "input_features", "input_values") if n in taken)
    if name == "pixel_values":
        size = getattr(config, "image_size", SMALL["image_size"])
        frames = (config.num_frames,) if config.model_type in models.VIDEOS else ()
        shape = (*frames, getattr(config, "num_channels", 3), *((size, size) if isinstance(size, int) else size))
    elif hasattr(config, "num_mel_bins") and hasattr(
        config, "max_source_positions"
    ):  # Whisper's: two frames a position
        shape = (config.num_mel_bins, 2 * config.max_source_positions)
    elif hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):  # AST's kind: frames first
        shape = (config.max_length, config.num_mel_bins)
    else:
        features = getattr(config, "num_mel_bins", getattr(config, "feature_projection_input_dim", 80))
        shape = (1600,) if name == "input_values" else (32, features)
    for batch in (BATCH, 1):
        yield f"batch {batch}", {name: rng.standard_normal((batch, *shape)).astype(np.float32)}


def _elementwise(bundle: Bundle, length: int) -> dict[str, float]:
    """Return the shares of steps and of time that the family `elementwise` has at the middle level."""
    facts = bundle.metadata
    level = len(facts["levels"]) // 2
    bundle.set_level(level)
    seconds = np.median([bundle.profile(**bundle.zeros(length)) for _ in range(5)], axis=0)
    steps = next(v["steps"] for v in facts["variants"] if (v["level"], v["length"]) == (level, length))
    slow = np.array([facts["kernels"][kernel]["family"] == "elementwise" for kernel, *_ in steps])
    return {"steps": float(slow.mean()), "time": float(seconds[slow].sum() / seconds.sum())}


def run_in_process(row: Row, log: str, effort: str, connection: Any) -> None:
    """Check a row with its output in a file; send each stage and then the record."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    connection.send(check(row, connection.send, effort))
    connection.close()
