"""Fixtures: one tiny pruned model and its bundle for all tests that need any, whichever process they run in."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rt3_tvm  # PyTorch and TVM are imported in the workers alone, on first use

CORES = len(os.sched_getaffinity(0))
MOST_WORKERS = 4  # each holds PyTorch, TVM and a model or two: 1.5 GB
TINY_LENGTHS, TINY_BATCH = (16, 40), 2


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return a worker for each core; none for tests of one file, which start sooner and can be debugged."""
    files = {argument.split("::")[0] for argument in config.args}
    return 0 if len(files) == 1 and Path(*files).is_file() else min(CORES, MOST_WORKERS)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes golden texts instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="write the texts in tests/golden anew")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden texts are to be written."""
    return bool(request.config.getoption("update_golden"))


def pytest_configure(config: pytest.Config) -> None:
    """Give the workers, and what they start, as many threads as there are cores and no more."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max(1, CORES // (config.getoption("numprocesses", 0) or 1)))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all workers of this run see."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def once(path: Path, build: Callable[[Path], object]) -> Path:
    """Return a path in the shared folder, built by the first worker that asks; the others wait for it."""
    done = path.with_name(f"{path.name}.done")
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            build(path)
            done.touch()
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache(shared: Path) -> None:
    """Keep the user's cache out of the tests, and theirs out of it; what one worker compiles the others find there."""
    os.environ["RT3_CACHE_DIR"] = str(shared / "cache")


@pytest.fixture(scope="session")
def tiny_checkpoint() -> "rt3_tvm.Checkpoint":
    """A BERT of 2 layers and 48 features at 3 levels, with block pruning."""
    from rt3_tvm import model

    return rt3_tvm.prune(model.load("random-tiny"), rt3_tvm.PruneOptions(block_sparsity=0.25))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: "rt3_tvm.Checkpoint", shared: Path) -> Path:
    """Its bundle at frequencies 1.4, 1.0 and 0.8 GHz."""
    options = rt3_tvm.CompileOptions(
        frequencies=(1.4e9, 1.0e9, 0.8e9), lengths=TINY_LENGTHS, batch=TINY_BATCH, deadline_s=10.0, threads=3
    )
    return once(shared / "tiny.so", lambda path: rt3_tvm.compile(tiny_checkpoint, path, options))


@pytest.fixture(scope="session")
def saved_checkpoint(tiny_checkpoint: "rt3_tvm.Checkpoint", shared: Path) -> Path:
    """The tiny checkpoint on disk; copy it before changing it."""
    return once(shared / "tiny.ckpt", tiny_checkpoint.save)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def reference(checkpoint: "rt3_tvm.Checkpoint", level: int, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return what PyTorch gives with the masks of a level applied."""
    import torch

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
