"""Damaged copies of a synthetic bundle, each loaded in a process of its own: refused in one line, or right.

Arguments: the bundle, a file with its tables (.npy), a scratch folder, a seed, how many. Prints how many were refused and how
many were right; ends with 1 and says which where one was neither. A program of its own, so that a child is forked from little.
"""

import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rt3_tvm import load
from rt3_tvm.errors import Rt3Error
from rt3_tvm.runtime.check import METADATA_SECTION, open_bundle, read_metadata
from rt3_tvm.runtime.checksums import check_content, seal

REFUSED, RIGHT, WRONG = 10, 11, 12
ODD = (None, -1, 0, 2**63, 1e308, float("nan"), float("-inf"), "", "x", [], {}, True, [[]], {"a": 1})
IDS = np.array([[0, 1, 2, 3, 4, 5, 10, 9], [7, 7, 6, 5, 4, 3, 2, 1]])


def flip_bit(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random) -> None:
    start, size = rng.randrange(len(data)), rng.choice((4, 64, 4096))
    data[start : start + size] = rng.choice((b"\0", b"\xff", b"A")) * len(data[start : start + size])


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def cut_out(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 8, 4096))]


def append(data: bytearray, rng: random.Random) -> None:
    data += rng.randbytes(rng.choice((1, 4096)))


def exchange(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((8, 64, 4096))
    a, b = sorted(rng.randrange(0, len(data) - 2 * size) for _ in range(2))
    b = max(b, a + size)
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def flip_header(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(0x400)] ^= 1 << rng.randrange(8)


DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip_bit,
    flip_bit,
    flip_bit,
    overwrite,
    cut,
    cut_out,
    append,
    exchange,
    flip_header,
)


def forge_metadata(path: Path, rng: random.Random) -> None:
    """Change one value of the metadata, or its text, and seal the bundle again."""
    facts = read_metadata(path)
    inner = facts
    while True:
        key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if not isinstance(inner[key], dict | list) or not inner[key] or rng.random() < 0.3:
            inner[key] = rng.choice(ODD)
            break
        inner = inner[key]
    text = bytearray(json.dumps(facts).encode())
    if rng.random() < 0.3:
        rng.choice((flip_bit, cut, cut_out))(text, rng)
    with open_bundle(path) as file:
        part = next(p for p in check_content(file, path) if p.name == METADATA_SECTION)
    with path.open("r+b") as file:
        file.seek(part.offset)
        file.write(bytes(text[: part.size - 1]).ljust(part.size, b"\0"))
    seal(path)


def judge(path: Path, tables: np.ndarray) -> int:
    """Load and run a bundle; return what came of it."""
    try:
        with load(path) as bundle:
            for level, table in enumerate(tables):
                bundle.set_level(level)
                got = bundle(input_ids=IDS)["sum"]
                if not np.array_equal(got, table.sum(0, dtype=np.float32)[IDS]):
                    return WRONG
            return RIGHT if bundle.metadata["batch"] >= 1 and len(bundle.levels) == len(tables) else WRONG
    except Rt3Error as error:
        return REFUSED if "\n" not in str(error) else WRONG


def in_a_child(judge: Callable[[], int]) -> int:
    """Return the exit code of a child that judges; negative for a signal, which also ends one that hangs."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            os._exit(judge())
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(WRONG)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> int:
    bundle, tables, folder = Path(sys.argv[1]), np.load(sys.argv[2]), Path(sys.argv[3])
    seed, count = int(sys.argv[4]), int(sys.argv[5])
    whole = bundle.read_bytes()
    found: Counter[int] = Counter()
    for case in range(count):
        rng = random.Random(f"{seed} {case}")
        path = folder / f"{case}.so"
        data = bytearray(whole)
        forge = rng.random() < 0.25
        if not forge:
            rng.choice(DAMAGES)(data, rng)
        path.write_bytes(data)
        if forge:
            forge_metadata(path, rng)
        code = in_a_child(lambda path=path: judge(path, tables))
        if code not in (REFUSED, RIGHT):
            print(f"case {case} of seed {seed}: {code}, see {path}")
            return 1
        found[code] += 1
        path.unlink()
    print(f"refused {found[REFUSED]}, right {found[RIGHT]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
