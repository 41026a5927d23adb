"""``rt3 bench model``: every level of a bundle against dense rivals, interleaved in one run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rt3_tvm import model as models
from rt3_tvm.bench.rivals import installed_rivals
from rt3_tvm.errors import Rt3Error
from rt3_tvm.runtime import Bundle, load
from rt3_tvm.timing import Timing, time_interleaved

ROUNDS = 15


@dataclass(frozen=True)
class ModelResult:
    """Timing of each level, and of each rival by name, on (batch, length) inputs."""

    batch: int
    length: int
    threads: int
    levels: tuple[Timing, ...]
    densities: tuple[float, ...]
    rivals: dict[str, Timing]

    def to_json(self) -> dict[str, object]:
        """Return the result for ``--json``."""
        return {
            "batch": self.batch,
            "length": self.length,
            "threads": self.threads,
            "levels": [
                {"level": i, "density": d, "median_ms": t.median, "low_ms": t.low, "high_ms": t.high}
                for i, (t, d) in enumerate(zip(self.levels, self.densities, strict=True))
            ],
            "rivals": {n: {"median_ms": t.median, "low_ms": t.low, "high_ms": t.high} for n, t in self.rivals.items()},
        }


def bench_model(
    path: Path,
    length: int | None = None,
    against: list[str] | None = None,
    rounds: int = ROUNDS,
    threads: int = 1,
) -> ModelResult:
    """Time every level of a bundle and the dense model it was made from.

    The rivals run the same architecture with random weights: the time of dense code does not depend on them.
    """
    bundle = load(path)
    bundle.set_threads(threads)
    batch, length = bundle.max_batch, length or bundle.max_length
    if not 1 <= length <= bundle.max_length:
        raise Rt3Error(f"`length` {length}: this bundle takes 1 to {bundle.max_length}")
    model = models.build(bundle.metadata["model"])
    inputs = models.random_inputs(models.inputs_of(model), batch, length)
    calls: dict[str, Callable[[], object]] = {
        f"level {i}": partial(_at_level, bundle, i, inputs) for i in range(len(bundle.levels))
    }
    for name, rival in installed_rivals(against).items():
        calls[name] = rival.model(model, inputs, threads)
    times = time_interleaved(calls, rounds)
    levels = tuple(times.pop(f"level {i}") for i in range(len(bundle.levels)))
    return ModelResult(batch, length, threads, levels, tuple(lv.density for lv in bundle.levels), times)


def _at_level(bundle: Bundle, level: int, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    bundle.set_level(level)
    return bundle(**inputs)
