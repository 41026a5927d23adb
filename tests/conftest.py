"""Fixtures: one tiny pruned model and its bundle for all tests that need any."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from rt3_tvm import CompileOptions, PruneOptions, compile, model, prune
from rt3_tvm.checkpoint import Checkpoint

torch.set_num_threads(2)
TINY_LENGTHS, TINY_BATCH = (16, 40), 2


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's cache out of the tests, and theirs out of it."""
    os.environ["RT3_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Checkpoint:
    """A BERT of 2 layers and 48 features at 3 levels, with block pruning."""
    return prune(model.load("random-tiny"), PruneOptions(block_sparsity=0.25))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle at frequencies 1.4, 1.0 and 0.8 GHz."""
    path = tmp_path_factory.mktemp("bundle") / "tiny.so"
    options = CompileOptions(
        frequencies=(1.4e9, 1.0e9, 0.8e9), lengths=TINY_LENGTHS, batch=TINY_BATCH, deadline_s=10.0, threads=3
    )
    compile(tiny_checkpoint, path, options)
    return path


@pytest.fixture(scope="session")
def saved_checkpoint(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint on disk; copy it before changing it."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt"
    tiny_checkpoint.save(path)
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def reference(checkpoint: Checkpoint, level: int, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return what PyTorch gives with the masks of a level applied."""
    with torch.inference_mode():
        outputs = checkpoint.torch_model(level)(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    return {k: v.numpy() for k, v in outputs.items() if isinstance(v, torch.Tensor)}


def data_directory() -> Path:
    """Return the folder of data sets, or skip."""
    for candidate in (os.environ.get("RT3_DATA"), "../shared/data"):
        if candidate and (Path(candidate) / "stsb" / "sts-dev.csv").is_file():
            return Path(candidate)
    pytest.skip("no data sets: set RT3_DATA to a folder with stsb/sts-dev.csv")


def need_program(name: str, hint: str) -> str:
    """Return the path of a program, or skip."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: {hint}")
    return found


def app_tokens(limit: int) -> list[int]:
    """Return the 20 tokens that examples/app.cpp runs."""
    state, tokens = 12345, []
    for _ in range(20):
        state = (state * 1664525 + 1013904223) % 2**32
        tokens.append((state >> 8) % limit)
    return tokens
