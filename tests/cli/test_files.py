"""What the commands read and write: whole or not at all, one line for what cannot be, and nothing over what is no file."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
import tvm
from safetensors.numpy import load_file, save_file
from tvm import te

from rt3_tvm import files
from rt3_tvm.codegen.kernels import write_object
from rt3_tvm.errors import JobError, Rt3Error
from tests.cli.test_commands import fails

READ_ONLY = Path("/proc")
"""A folder in which nobody can make a file, the superuser included."""


@pytest.fixture
def inputs(tmp_path):
    np.savez(tmp_path / "in.npz", input_ids=np.zeros((1, 4), np.int64))
    return tmp_path / "in.npz"


def commands(tiny_bundle, saved_checkpoint, inputs, target):
    return {
        "compile": ("compile", saved_checkpoint, "--seq-len", "8", "-o", target),
        "prune": ("prune", "random-tiny", "-o", target),
        "run": ("run", tiny_bundle, "-i", inputs, "-o", target),
    }


@pytest.mark.parametrize("command", ["compile", "run"])
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_what_is_no_file_is_not_replaced(
    tiny_bundle, saved_checkpoint, inputs, tmp_path, monkeypatch, capsys, command, kind
):
    target = tmp_path / "target"
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "directory":
        target.mkdir()
    else:
        target.symlink_to("/dev/null")
    before = target.lstat()
    err = fails(capsys, 2, *commands(tiny_bundle, saved_checkpoint, inputs, target)[command])
    assert ("it is a directory" if kind == "directory" else "it is no regular file") in err
    assert target.lstat().st_mode == before.st_mode and target.lstat().st_ino == before.st_ino


@pytest.mark.parametrize(
    ("command", "folder", "code"),
    [
        ("compile", "file", 2),
        ("compile", "none/deeper", 2),
        ("prune", "file", 2),
        ("prune", READ_ONLY, 1),
        ("run", "file", 2),
        ("run", "none/deeper", 2),
        ("run", READ_ONLY, 1),
    ],
)
def test_where_nothing_can_be_written_is_one_line(
    tiny_bundle, saved_checkpoint, inputs, tmp_path, capsys, command, folder, code
):
    (tmp_path / "file").write_text("x")
    target = tmp_path / folder / "out"
    err = fails(capsys, code, *commands(tiny_bundle, saved_checkpoint, inputs, target)[command])
    assert "cannot write" in err and str(target) in err
    assert (tmp_path / "file").read_text() == "x"


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.json"
    files.write_text(path, "old")
    with pytest.raises(JobError, match="No space left"), files.written_whole(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["table.json"]
    with pytest.raises(Rt3Error, match="no such directory"):
        files.write_text(tmp_path / "none" / "table.json", "new")


def test_a_pipe_is_not_waited_for(tiny_bundle, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for arguments in (
        ("run", tiny_bundle, "-i", tmp_path / "pipe"),
        ("run", tmp_path / "pipe", "-i", tmp_path / "pipe"),
        ("inspect", tmp_path / "pipe"),
        ("compile", tmp_path / "pipe", "-o", tmp_path / "m.so"),
    ):
        fails(capsys, 2, *arguments)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 60}


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(folder)
    return folder


def cut(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def configure(folder, old, new):
    path = folder / "config.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


LAYER = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: cut(f, 5000), "model"),
        (lambda f: cut(f, 4), "model"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: change(f, lambda t: t.pop(LAYER)), f"lack 1 of the model's: {LAYER}"),
        (lambda f: change(f, lambda t: [t.pop(k) for k in list(t) if ".layer.1." in k]), "lack 16 of the model's"),
        (
            lambda f: change(f, lambda t: t.update({LAYER: t[LAYER][:-1].copy()})),
            "is [31, 32], the configuration wants [32, 32]",
        ),
        (lambda f: configure(f, '"hidden_size": 32', '"hidden_size": 64'), "the configuration wants"),
        (lambda f: configure(f, '"num_hidden_layers": 2', '"num_hidden_layers": 3'), "lack 16 of the model's"),
        (lambda f: configure(f, '"num_attention_heads": 2', '"num_attention_heads": 3'), "attention heads"),
        (lambda f: configure(f, '"hidden_size": 32', '"hidden_size": "wide"'), "wide"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "recursion"),
        (lambda f: (f / "config.json").write_text("[]"), "model_type"),
    ],
)
def test_a_damaged_model_is_one_line(model_directory, tmp_path, capsys, damage, message):
    folder = shutil.copytree(model_directory, tmp_path / "model")
    damage(folder)
    err = fails(capsys, 2, "prune", folder, "-o", tmp_path / "out.ckpt")
    assert message in err, err
    assert not (tmp_path / "out.ckpt").exists()


def test_a_full_disk_does_not_end_the_process():
    """LLVM ends it where it cannot write an object, and what was begun stays behind."""
    a = te.placeholder((4,), name="a")
    module = tvm.IRModule({"main": te.create_prim_func([a, te.compute((4,), lambda i: a[i] + 1, name="b")])})
    built = tvm.compile(module, target={"kind": "llvm"})
    with pytest.raises(OSError, match="No space left"):
        write_object(built.mod, Path("/dev/full"))


TELEMETRY = """
import sys
asked = []
sys.addaudithook(lambda event, args: asked.append((event, args)) if event in ("socket.connect", "socket.getaddrinfo") else None)
import numpy as np
from rt3_tvm.bench.rivals import RIVALS
x, weight, bias = np.ones((4, 8), np.float32), np.ones((6, 8), np.float32), np.zeros(6, np.float32)
RIVALS["openvino"].linear(x, weight, bias, 1)()
assert "openvino.tools.ovc.telemetry_stub" in sys.modules and not asked, asked
"""


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino: the extra `bench`")
def test_the_benchmark_asks_no_network():
    done = subprocess.run([sys.executable, "-c", TELEMETRY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
