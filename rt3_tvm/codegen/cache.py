"""What was built before, by content: bundles and kernel objects.

A key is the SHA-256 of everything that the result depends on, this package's own source included. Entries live in the user's
cache folder (``RT3_CACHE_DIR`` names another); the oldest go when they exceed ``MAX_BYTES`` together.
"""

import hashlib
import json
import os
import shutil
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import platformdirs

from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.files import written_whole

MAX_BYTES = 4 << 30
"""Room of the cache: some ten DistilBERT bundles."""


def folder() -> Path:
    """Return the folder of the cache."""
    given = os.environ.get("RT3_CACHE_DIR")
    return Path(given) if given else Path(platformdirs.user_cache_dir("rt3-tvm", appauthor=False))


def key_of(**parts: Any) -> str:
    """Return the key of what depends on ``parts`` (JSON) and on the source of this package."""
    text = json.dumps(parts | {"source": _source_digest()}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _source_digest() -> str:
    digest = hashlib.sha256()
    for package in ("rt3_tvm", "rt3_tvm.schedules", "rt3_tvm.targets"):
        root = Path(str(resources.files(package)))
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".c", ".h", ".toml"):
                digest.update(f"{package}/{path.relative_to(root)}".encode() + path.read_bytes())
    return digest.hexdigest()


def fetch(key: str, target: Path) -> bool:
    """Copy an entry to ``target``; False when there is none."""
    entry = folder() / key
    try:
        shutil.copyfile(entry, target)
        os.utime(entry)  # used now: the last to go
    except OSError:
        return False
    return True


def store(key: str, source: Path) -> None:
    """Keep a copy of a file; a cache that cannot be written is no error."""
    try:
        root = folder()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with written_whole(root / key) as temporary:
            shutil.copyfile(source, temporary)
        _evict(root)
    except (OSError, JobError, Rt3Error):
        return


def _evict(root: Path) -> None:
    """Delete the entries that were not used for the longest time, down to MAX_BYTES."""
    entries = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in root.iterdir() if p.is_file())
    excess = sum(size for _, size, _ in entries) - MAX_BYTES
    for _, size, path in entries:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
