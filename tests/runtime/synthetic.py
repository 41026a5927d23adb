"""Bundles that no compiler of ours made: tables, weights and a kernel in C, for what a real model would take long to show."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rt3_tvm.codegen.kernels import Kernel
from rt3_tvm.codegen.link import link_bundle
from rt3_tvm.codegen.metadata import encode_metadata
from rt3_tvm.codegen.plan import Place, Step, VariantPlan
from rt3_tvm.codegen.tables import LevelRow, Tables, blob_assembly
from rt3_tvm.codegen.weights import WeightSection
from rt3_tvm.model import InputSpec, OutputSpec
from rt3_tvm.runtime.check import BUNDLE_FORMAT, SHARED

VOCABULARY, BATCH, LENGTHS = 11, 2, (4, 9)
OUTPUT_OFFSET, WORKSPACE = 1024, 2048
HZ = (1.4e9, 1.0e9, 0.8e9)

KERNEL = """#include <stdint.h>
void look_up({parameters}, int32_t first, int32_t last) {{
  const float *tables[] = {{{tables}}};
  for (int32_t i = first; i < last; ++i) {{
    float sum = 0;
    for (int t = 0; t < {count}; ++t) sum += tables[t][((const int64_t *)ids)[i]];
    ((float *)out)[i] = sum;
  }}
}}
"""


@dataclass(frozen=True)
class Synthetic:
    """A bundle whose output is the sum of what each token looks up in ``tables`` (level, table, token)."""

    path: Path
    tables: np.ndarray

    def reference(self, level: int, ids: np.ndarray) -> np.ndarray:
        """Return the output for tokens of any shape."""
        return self.tables[level].sum(0, dtype=np.float32)[ids]


def metadata(steps: int) -> dict:
    """Return what such a bundle says of itself."""
    variants = [
        {"level": level, "length": n, "steps": [[0, "", 0, 0]] * steps} for level in range(len(HZ)) for n in LENGTHS
    ]
    levels = [{"frequency_hz": hz, "deadline_s": 0.0, "density": 0.5, "sparsity": 0.5} for hz in HZ]
    return {
        "format": BUNDLE_FORMAT,
        **dict.fromkeys(("device", "cluster", "rt3_version", "tvm_version"), "none"),
        "model": {"class": "none"},
        "target": {},
        **{name: [] for name in ("cpu_features", "compiler", "unmatched")},
        "batch": BATCH,
        "threads": 2,
        "lengths": list(LENGTHS),
        "inputs": ["input_ids"],
        "outputs": ["sum"],
        "weights_bytes": 0,
        "weight_sections": [{"level": SHARED, "offset": 0, "bytes": 0}],
        "workspace_bytes": WORKSPACE,
        "kernels": [{"symbol": "look_up", "family": "none"}],
        "levels": levels,
        "variants": variants,
        "matrices": {},
    }


def build(folder: Path, *flags: str, count: int = 2) -> Synthetic:
    """Return a bundle of one kernel that takes ``count`` tables beside its input and output."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = np.random.default_rng(0).integers(-8, 8, (len(HZ), count, VOCABULARY)).astype(np.float32)
    (folder / "weights.bin").write_bytes(tables.tobytes())
    (folder / "metadata.json").write_bytes(encode_metadata(metadata(1), room=4096))
    (folder / "weights.S").write_text(blob_assembly(Path("weights.bin"), Path("metadata.json")))
    names = [f"t{i}" for i in range(count)]
    parameters = ", ".join(f"void *{n}" for n in ["ids", *names, "out"])
    (folder / "kernel.c").write_text(KERNEL.format(parameters=parameters, tables=", ".join(names), count=count))
    compiler = ["cc", "-g", *flags]
    subprocess.run([*compiler, "-O1", "-fPIC", "-c", "kernel.c", "-o", "kernels.o"], cwd=folder, check=True)
    tables_c = Tables(
        [LevelRow(hz, 0.0, 0.5) for hz in HZ],
        [_plan(level, length, count) for level in range(len(HZ)) for length in LENGTHS],
        [Kernel("look_up", "none", count + 2, BATCH * LENGTHS[-1])],
        [InputSpec("input_ids", VOCABULARY, fill=1)],
        [OutputSpec("sum", ("batch", "length"))],
        [WeightSection(SHARED, 0, tables.nbytes)],
        BATCH,
        exact_lengths=False,
    )
    (folder / "tables.c").write_text(tables_c.to_c())
    link_bundle(compiler, folder, ["kernels.o"], "bundle.so", "bundle.so", {"RT3_MAX_THREADS": 2, **tables_c.limits})
    return Synthetic(folder / "bundle.so", tables)


def _plan(level: int, length: int, count: int) -> VariantPlan:
    size = VOCABULARY * 4
    weights = [Place("weights", (level * count + i) * size) for i in range(count)]
    step = Step(0, (Place("workspace", 0), *weights, Place("workspace", OUTPUT_OFFSET)))
    return VariantPlan(level, length, (step,), (0,), (OUTPUT_OFFSET,), WORKSPACE)
