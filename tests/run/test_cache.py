"""The cache of ``rt3 compile``: the same content is built once, anything else anew."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from rt3_tvm import CompileOptions, compile, load
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.codegen import cache

OPTIONS = CompileOptions(frequencies=(1.4e9, 1.0e9, 0.8e9), lengths=(16,), verify=False)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("RT3_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def built(tiny_checkpoint, tmp_path_factory):
    """A folder with the cache of one build."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RT3_CACHE_DIR", str(folder / "cache"))
        compile(tiny_checkpoint, folder / "m.so", OPTIONS)
    return folder


@pytest.fixture
def filled(empty, built):
    shutil.copytree(built / "cache", empty / "cache")
    return empty


class Begun(Exception):
    """A bundle is about to be built."""


@pytest.fixture
def stop_when_built(monkeypatch):
    """Go no further than the look into the cache."""

    def begins(_build):
        raise Begun

    monkeypatch.setattr("rt3_tvm.codegen.compile._Build.plan", begins)


def test_the_same_content_is_built_once(empty, saved_checkpoint, tiny_checkpoint):
    first = compile(tiny_checkpoint, empty / "m.so", replace(OPTIONS, verify=True))
    bytes_of_first = (empty / "m.so").read_bytes()
    (empty / "m.so").unlink()
    again = compile(Checkpoint.load(saved_checkpoint), empty / "m.so", replace(OPTIONS, verify=True))
    assert not first.from_cache and again.from_cache
    assert (empty / "m.so").read_bytes() == bytes_of_first and again.metadata == json.loads(json.dumps(first.metadata))


@pytest.mark.parametrize("change", ["weight", "lengths", "threads", "deadline", "device", "name"])
def test_any_change_is_built_anew(filled, stop_when_built, tiny_checkpoint, change):
    assert compile(tiny_checkpoint, filled / "m.so", OPTIONS).from_cache
    checkpoint, options, name = tiny_checkpoint, OPTIONS, "m.so"
    if change == "weight":
        weights = dict(tiny_checkpoint.weights)
        key = next(iter(weights))
        weights[key] = weights[key] + np.float32(1e-3)
        checkpoint = replace(tiny_checkpoint, weights=weights)
    elif change == "name":
        name = "other.so"
    else:
        new = {"lengths": (17,), "threads": 2, "deadline_s": 0.1, "device": "odroid-xu3"}
        options = replace(OPTIONS, **{k: v for k, v in new.items() if k.startswith(change)})
    if change == "device":
        pytest.importorskip(
            "ziglang", reason="cross-compiling needs a C compiler for ARM: pip install 'rt3-tvm[cross]'"
        )
    with pytest.raises(Begun):
        compile(checkpoint, filled / name, options)


def test_equal_kernels_are_compiled_once(filled, tiny_checkpoint, monkeypatch):
    stored = []
    monkeypatch.setattr(cache, "store", lambda key, source: stored.append(source.name))
    compile(tiny_checkpoint, filled / "m.so", replace(OPTIONS, deadline_s=1.0))
    assert stored == ["bundle.so"]


@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_a_damaged_entry_is_built_anew(filled, tiny_checkpoint, damage):
    for entry in (filled / "cache").iterdir():
        entry.write_bytes(
            entry.read_bytes()[: 1000 if damage == "truncated" else 0]
            if entry.stat().st_size > 1 << 17
            else entry.read_bytes()
        )
    assert not compile(tiny_checkpoint, filled / "m.so", OPTIONS).from_cache
    with load(filled / "m.so") as bundle:
        bundle(input_ids=np.ones((1, 4), np.int64))


def test_no_cache_and_a_cache_that_cannot_be_written(empty, tiny_checkpoint, monkeypatch):
    compile(tiny_checkpoint, empty / "m.so", replace(OPTIONS, cache=False))
    assert not (empty / "cache").exists()
    (empty / "file").write_text("")
    monkeypatch.setenv("RT3_CACHE_DIR", str(empty / "file"))
    assert not compile(tiny_checkpoint, empty / "m.so", OPTIONS).from_cache


def test_the_oldest_entries_go(tmp_path, monkeypatch):
    monkeypatch.setenv("RT3_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MAX_BYTES", 250)
    (tmp_path / "source").write_bytes(b"x" * 100)
    for name in "abc":
        cache.store(name, tmp_path / "source")
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["b", "c"]
    assert not cache.fetch("a", tmp_path / "target") and cache.fetch("b", tmp_path / "target")
