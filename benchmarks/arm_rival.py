"""ONNX Runtime counted on 64-bit ARM: the instructions of one inference of its own wheel, which the sysroot holds.

An inference is what ten more inferences execute, divided by ten: what Python, loading and the first calls take
cancels. The sysroot is that of ``benchmarks/arm_sysroot.py``; on each core it is seen with that core's ``/proc/cpuinfo``, by
which ONNX Runtime chooses its kernels.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from arm_sysroot import CORES, PYTHON, default_folder, root_of

from rt3_tvm import model as models
from rt3_tvm.bench.arm_qemu import build_plugin
from rt3_tvm.bench.rivals import RIVALS, onnx_model
from rt3_tvm.runtime.check import read_metadata

NAMES = ("onnxruntime", "onnxruntime-int8")
RUNS = (2, 12)
"""Inferences of the two processes whose difference is taken: many, because what Python takes differs by some million a run."""
SCRIPT = """
import sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
given = np.load(sys.argv[2])
feed = {one.name: given[one.name] for one in session.get_inputs()}
for _ in range(int(sys.argv[3])):
    session.run(None, feed)
"""


def unavailable(core: str) -> str:
    """Return why nothing can be counted for a core; empty where it can."""
    if core not in CORES:
        return f"ONNX Runtime is counted on {', '.join(CORES)}, not on {core}"
    if missing := [p for name in NAMES for p in RIVALS[name].missing]:
        return f"ONNX Runtime is not counted: {missing[0]} is not installed"
    if shutil.which("qemu-aarch64") is None:
        return "ONNX Runtime is not counted: qemu-aarch64 is not installed"
    if not (default_folder() / "root").is_dir():
        return f"ONNX Runtime is not counted: no {default_folder()}: python benchmarks/arm_sysroot.py makes it"
    return ""


def instructions(core: str, bundle: Path, length: int) -> dict[str, int]:
    """Return what one inference of a bundle's model, dense, takes on a core by rival: one sequence of a length, one thread."""
    why = unavailable(core)
    if why:
        print(why, file=sys.stderr)
        return {}
    model = models.build(read_metadata(bundle)["model"])
    inputs = models.random_inputs(models.inputs_of(model), 1, length)
    with tempfile.TemporaryDirectory(prefix="rt3-") as name:
        return {rival: _count(Path(name), core, model, inputs, rival) for rival in NAMES}


def _count(folder: Path, core: str, model: Any, inputs: Mapping[str, np.ndarray], rival: str) -> int:
    path, given = folder / f"{rival}.onnx", folder / "inputs.npz"
    path.write_bytes(onnx_model(model, dict(inputs), int8=rival.endswith("int8")).SerializeToString())
    np.savez(given, **dict(inputs))
    few, many = (_executed(folder, core, ["-c", SCRIPT, str(path), str(given), str(runs)]) for runs in RUNS)
    return round((many - few) / (RUNS[1] - RUNS[0]))


def _executed(folder: Path, core: str, arguments: list[str]) -> int:
    """Return all instructions that a Python for ARM executes."""
    plugin, file = folder / "arm_count.so", folder / "counts.txt"
    build_plugin("qemu-aarch64", plugin)
    root = root_of(core, default_folder())
    options = ["-cpu", CORES[core].name, "-L", str(root), "-E", "PYTHONHASHSEED=0", "-plugin", f"{plugin},out={file}"]
    command = ["qemu-aarch64", *options, str(root / "usr/bin" / f"python{PYTHON}"), *arguments]
    subprocess.run(command, check=True, capture_output=True)
    blocks = (line.split() for line in file.read_text(encoding="ascii").splitlines())
    return sum(int(count) * int(times) for _, count, times in blocks)
