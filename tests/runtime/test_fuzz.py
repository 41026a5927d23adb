"""Random calls of the C API under sanitizers, and hundreds of damaged bundles: a bounded number, the same every time.

Other seeds and more cases: ``RT3_FUZZ_SEED=7 RT3_FUZZ_CASES=20 pytest tests/runtime/test_fuzz.py`` (twenty times as many).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runtime import synthetic
from tests.runtime.test_c_api import build, run

HERE = Path(__file__).parent
SEED = os.environ.get("RT3_FUZZ_SEED", "1")
TIMES = int(os.environ.get("RT3_FUZZ_CASES", "1"))


def test_random_calls_of_the_c_api(tmp_path):
    flag = "-fsanitize=address,undefined"
    bundle = synthetic.build(tmp_path / "bundle", flag, "-fno-sanitize-recover=all")
    bundle.tables.sum(1, dtype=np.float32).tofile(tmp_path / "table.f32")
    build(HERE / "fuzz_api.c", bundle.path, tmp_path / "fuzz", "cc", flag, "-fno-sanitize-recover=all")
    run(tmp_path / "fuzz", SEED, 30_000 * TIMES, tmp_path / "table.f32")


@pytest.mark.parametrize("part", range(2))
def test_damaged_bundles_are_refused_or_right(tmp_path, part):
    bundle = synthetic.build(tmp_path / "bundle")
    np.save(tmp_path / "tables.npy", bundle.tables)
    cases = 150 * TIMES
    command = [
        sys.executable,
        HERE / "fuzz_bundles.py",
        bundle.path,
        tmp_path / "tables.npy",
        tmp_path,
        f"{SEED}{part}",
        cases,
    ]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    refused, right = map(int, re.findall(r"\d+", done.stdout))
    # Most damage is found; what lies between sections, and what was appended, does no harm.
    assert refused + right == cases and refused > cases / 2
