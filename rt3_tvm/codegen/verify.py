"""Every bundle proves itself: before it gets its name, each level and length is compared with the masked PyTorch model."""

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.codegen.emulate import Unavailable, find_emulator
from rt3_tvm.errors import JobError
from rt3_tvm.model import NUMBERS, OutputSpec, inputs_of
from rt3_tvm.runtime import load
from rt3_tvm.runtime.check import WrongMachine
from rt3_tvm.schedules.layout import INT8
from rt3_tvm.trials import TOLERANCES, Difference, Trial, compare, reference, trials_of

COARSE = "every layer computes what integers give: leave some out by `keep_float`, or choose another `dtype`"
"""What can be done where a level of int8 is far from PyTorch."""
ROOM = 1024
"""Bytes of metadata for the facts of a verification, and as many again for each eight variants."""


@dataclass(frozen=True, eq=False)
class Proof:
    """What a bundle is compared with.

    Parameters
    ----------
    model
        A PyTorch model of the checkpoint's description; it gets the weights of one level after the other.
    outputs
        The outputs of the bundle.
    lengths
        The compiled lengths, ascending; 1 alone for a model without tokens.
    exact_lengths
        Whether other lengths are refused, because padding shows in the outputs.
    dtypes
        What the linear layers of each level multiply; empty: float32.
    typical
        From a length to what levels of int8 are compared on that were calibrated; None: on the same as all.
    """

    checkpoint: Checkpoint
    model: torch.nn.Module
    outputs: tuple[OutputSpec, ...]
    lengths: tuple[int, ...]
    batch: int
    exact_lengths: bool = False
    dtypes: tuple[str, ...] = ()
    typical: Callable[[int], tuple[Trial, ...]] | None = None

    def trials_of(self, level: int) -> dict[int, tuple[Trial, ...]]:
        """Return the trials of a level, by length."""
        if self.typical is None or self.dtype(level) != INT8.dtype:
            return self.trials
        return {length: self.typical(length) for length in self.lengths}

    @property
    def tolerances(self) -> dict[str, float]:
        """What is tolerated, by element type."""
        return {dtype: TOLERANCES[dtype] for dtype in dict.fromkeys(self.dtypes or (NUMBERS,))}

    def compare(self, level: int, trial: Trial, got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> Difference:
        """Return how far the outputs of a level are from PyTorch's."""
        return compare(self.model, self.outputs, trial, got, want, self.dtype(level))

    def dtype(self, level: int) -> str:
        """Return what the linear layers of a level multiply."""
        return self.dtypes[level] if self.dtypes else NUMBERS

    @cached_property
    def trials(self) -> dict[int, tuple[Trial, ...]]:
        """The trials of each length."""
        specs = inputs_of(self.model)
        return {
            length: trials_of(specs, self.batch, length, length - 1 if self.exact_lengths else below)
            for below, length in zip((0, *self.lengths), self.lengths, strict=False)
        }


@dataclass(frozen=True, eq=False)
class Failure:
    """A trial whose result is wrong."""

    level: int
    length: int
    trial: Trial
    difference: Difference

    def __str__(self) -> str:
        where, found = f"level {self.level}, length {self.length}", self.difference
        return f"{where}: output '{found.output}' {found.text} ({self.trial.name}, {self.trial.shape})"


def room_for(variants: int, checked: int = 0) -> int:
    """Return the bytes of metadata that the facts of a verification take; of variants with checked calls there is more to say."""
    return ROOM * (1 + -(-(variants + 2 * checked) // 8))


def is_foreign(target: Mapping[str, Any]) -> bool:
    """Return whether a target is of another architecture than this machine: what :func:`runs_here` will say of its bundle."""
    arch = str(target.get("mtriple", "")).split("-", 1)[0]
    return arch != platform.machine().replace("armv7l", "armv7a")


def runs_here(bundle: Path) -> bool:
    """Return whether a bundle is for this kind of machine, and for a CPU that has no more than this one."""
    try:
        load(bundle).close()
    except WrongMachine:
        return False
    return True


@dataclass(frozen=True, eq=False)
class Emulated:
    """What a bundle for another CPU gave under qemu-user for a trial of each level; ``skipped`` says why it gave nothing."""

    length: int
    trials: Mapping[int, Trial]
    command: str = ""
    outputs: Mapping[int, dict[str, np.ndarray]] = field(default_factory=dict)
    skipped: str = ""

    def compare(self, proof: Proof) -> dict[str, Any]:
        """Compare it with PyTorch and return what the bundle's metadata say of it.

        Raises
        ------
        JobError
            As for :func:`verify_bundle`.
        """
        if self.skipped:
            return {"skipped": self.skipped}
        rows = []
        for level, got in self.outputs.items():
            proof.checkpoint.mask(proof.model, level)
            trial = self.trials[level]
            found = proof.compare(level, trial, got, reference(proof.model, trial))
            if not found.tolerated:
                failure = Failure(level, self.length, trial, found)
                raise JobError(f"the bundle is wrong under {self.command}: {failure}; its kernels are right here")
            rows.append({"level": level, "length": self.length, "error": float(f"{found.error:.3g}")})
        return {"command": self.command, "errors": rows}


def emulate_bundle(path: Path, proof: Proof, target: dict[str, Any], compiler: list[str], soname: str) -> Emulated:
    """Run a bundle for another CPU under qemu-user, as far as emulate.py says; PyTorch is not asked yet.

    Raises
    ------
    JobError
        The bundle fails or dies.
    """
    length, names = proof.lengths[0], tuple(o.name for o in proof.outputs)
    levels = sorted({0, len(proof.checkpoint.levels) - 1})
    trials = {level: _for_emulation(proof.trials_of(level)[length]) for level in levels}
    try:
        emulator = find_emulator(target, compiler, path, soname)
        outputs = {level: emulator.run(level, trial, names) for level, trial in trials.items()}
    except Unavailable as error:
        return Emulated(length, trials, skipped=str(error))
    return Emulated(length, trials, " ".join(emulator.command), outputs)


def _for_emulation(trials: tuple[Trial, ...]) -> Trial:
    return next((t for t in trials if "padded" in t.name), trials[0])


def verify_bundle(path: Path, proof: Proof, explain: Callable[[Failure], str]) -> dict[str, Any]:
    """Run a bundle and return what its metadata say of it; ``explain`` says where a failure begins.

    Raises
    ------
    JobError
        An output that is further from PyTorch's than its element type allows.
    """
    rows = []
    with load(path) as bundle, _beside() as torch_side:
        for level in range(len(proof.checkpoint.levels)):
            proof.checkpoint.mask(proof.model, level)
            bundle.set_level(level)
            for length, trials in proof.trials_of(level).items():
                wanted = [torch_side.submit(reference, proof.model, trial) for trial in trials]
                given = [bundle(**trial.inputs) for trial in trials]
                # Comparing may disturb the model: not before PyTorch is done with it.
                references = [want.result() for want in wanted]
                worst = 0.0
                for trial, got, want in zip(trials, given, references, strict=True):
                    found = proof.compare(level, trial, got, want)
                    if not found.tolerated:
                        failure = Failure(level, length, trial, found)
                        if proof.dtype(level) == INT8.dtype:  # its kernels have proved themselves
                            raise JobError(f"int8 is too coarse for this model: {failure}; {COARSE}")
                        raise JobError(f"the compiled model is wrong: {failure}; {explain(failure)}")
                    worst = max(worst, found.error)
                rows.append({"level": level, "length": length, "error": float(f"{worst:.3g}")})
    return {"what": "the bundle itself", "tolerance": proof.tolerances, "errors": rows}


@contextmanager
def _beside() -> Iterator[ThreadPoolExecutor]:
    """Yield a thread that runs PyTorch on half of the cores, while the bundle runs on the others.

    Both on all of them would wait for each other at every operator, which takes many times what they compute.
    """
    threads = torch.get_num_threads()
    half = max(1, (os.cpu_count() or 1) // 2)
    try:
        with ThreadPoolExecutor(1, initializer=partial(torch.set_num_threads, half)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # PyTorch would give later threads what the last one took
