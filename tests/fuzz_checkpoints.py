"""Damaged copies of a checkpoint, each loaded in a process of its own: refused in one line, or the same model. Some are forged,
with checksums that are right: refused in one line, or some model.

Arguments: the checkpoint, a scratch folder, a seed, how many. As ``tests/runtime/fuzz_bundles.py``, whose damages it takes.
"""

import json
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.checkpoint_format import sealed_table
from rt3_tvm.errors import Rt3Error
from tests.runtime.fuzz_bundles import DAMAGES, ODD, REFUSED, RIGHT, WRONG, in_a_child

FILES = ("checkpoint.json", "weights.safetensors", "patterns.safetensors")


def edit_table(folder: Path, rng: random.Random, forge: bool) -> None:
    """Change, remove or repeat one value of the table."""
    path = folder / "checkpoint.json"
    table = json.loads(path.read_text())
    inner: Any = table
    key: Any = rng.choice(("levels", "levels", "matrices", "matrices", "model", "tensors", *table))
    while isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.85:
        inner = inner[key]
        key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    action = rng.randrange(6)
    if action == 0:
        del inner[key]
    elif action == 1 and isinstance(inner, list):
        inner.append(inner[key])
    elif action == 2 and isinstance(inner[key], int | float) and not isinstance(inner[key], bool):
        inner[key] = rng.choice((inner[key] + 1, -inner[key], inner[key] * 2, 10**12, inner[key] + 0.5))
    else:
        inner[key] = rng.choice(ODD)
    path.write_text(json.dumps(sealed_table(table) if forge else table))


def damage(folder: Path, rng: random.Random) -> None:
    """Damage one file."""
    path = folder / rng.choice(FILES)
    data = bytearray(path.read_bytes())
    rng.choice(DAMAGES)(data, rng)
    path.write_bytes(data)


def judge(folder: Path, whole: Checkpoint, forged: bool) -> int:
    """Load a checkpoint, build the model of its last level where it is forged, and return what came of it."""
    try:
        found = Checkpoint.load(folder)
        if forged:
            found.torch_model(len(found.levels) - 1)
            return RIGHT
    except Rt3Error as error:
        return REFUSED if "\n" not in str(error) else WRONG
    same = found.digest == whole.digest and found.weights.keys() == whole.weights.keys()
    same = same and all(np.array_equal(v, whole.weights[n]) for n, v in found.weights.items())
    for a, b in zip(found.levels, whole.levels, strict=True):
        same = same and all(np.array_equal(m.mask(), b.matrices[n].mask()) for n, m in a.matrices.items())
    return RIGHT if same else WRONG


KINDS = (
    (False, damage),
    (False, lambda folder, rng: edit_table(folder, rng, False)),
    (True, lambda folder, rng: edit_table(folder, rng, True)),
    (True, lambda folder, rng: edit_table(folder, rng, True)),
)
"""Whether the checksums are right, and what is done."""


def main() -> int:
    source, scratch, seed, count = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    torch.set_num_threads(1)  # others would not be there in a child
    whole = Checkpoint.load(source)
    whole.torch_model(0)  # imports once what every child needs
    found: Counter[int] = Counter()
    for case in range(count):
        rng = random.Random(f"{seed} {case}")
        folder = shutil.copytree(source, scratch / str(case))
        forged, change = KINDS[case % len(KINDS)]
        change(folder, rng)
        code = in_a_child(lambda folder=folder, forged=forged: judge(folder, whole, forged))
        if code not in (REFUSED, RIGHT):
            print(f"case {case} of seed {seed}: {code}, see {folder}")
            return 1
        found[code] += 1
        shutil.rmtree(folder)
    print(f"refused {found[REFUSED]}, right {found[RIGHT]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
