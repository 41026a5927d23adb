"""The commands as a user types them: what they print, and one line for every mistake."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from rt3_tvm.bench.kernel import host
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.cli.main import main
from rt3_tvm.runtime import load


def rt3(*args, check=None):
    """Run the command in a process of its own; return exit code, output, errors."""
    done = subprocess.run(
        [sys.executable, "-m", "rt3_tvm.cli.main", *map(str, args)], capture_output=True, text=True, check=False
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def fails(capsys, code, *args):
    """Run in this process, expect an exit code and one line; return the line."""
    try:
        result = main([str(a) for a in args])
    except SystemExit as exit_:
        result = exit_.code
    err = capsys.readouterr().err.strip()
    assert result == code, err
    assert err.count("\n") == 0 and "Traceback" not in err, err
    return err


def said(capsys, *args):
    """Run in this process, where what is imported is imported once; return the output."""
    assert main([str(a) for a in args]) == 0
    return capsys.readouterr().out


def test_the_whole_path(tmp_path, capsys):
    """What imports PyTorch or TVM to build something, and what runs without them, as processes; what only looks, in this one."""
    checkpoint, bundle = tmp_path / "t.ckpt", tmp_path / "t.so"
    _, out, _ = rt3(
        "prune",
        "random-tiny",
        "-o",
        checkpoint,
        "--sparsity",
        "0.5,0.8",
        "--pattern-shape",
        "8x16",
        "--group",
        2,
        "--block-sparsity",
        "0.2",
        "--patterns",
        16,
        check=0,
    )
    assert "13 matrices pruned" in out
    _, out, _ = rt3(
        "compile",
        checkpoint,
        "-o",
        bundle,
        "--freqs",
        "1.2GHz,600MHz",
        "--seq-len",
        "8,24",
        "--dump-ir",
        tmp_path / "ir",
        check=0,
    )
    assert "0: 1.2 GHz" in out and len(list((tmp_path / "ir").iterdir())) == 2 * (2 + 2 * 4)
    np.savez(tmp_path / "in.npz", input_ids=np.arange(20)[None])
    _, out, _ = rt3(
        "run",
        bundle,
        "-i",
        tmp_path / "in.npz",
        "-o",
        tmp_path / "out.npz",
        "--freq",
        "0.7GHz",
        "--print-time",
        "--repeat",
        3,
        "--number",
        2,
        check=0,
    )
    assert "mean (ms)" in out and "last_hidden_state: float32 (1, 20, 48)" in out
    with np.load(tmp_path / "out.npz") as file:
        assert file["last_hidden_state"].shape == (1, 20, 48)
    for path, kind in ((checkpoint, "checkpoint"), (bundle, "bundle")):
        facts = json.loads(said(capsys, "inspect", path, "--json"))
        assert facts["kind"] == kind and len(facts["levels"]) == 2 and len(facts["matrices"]) == 13
        shown = said(capsys, "inspect", path)
        assert "matrices" in shown and ("verified: the bundle itself" in shown) == (kind == "bundle")
    out = said(capsys, "bench", "model", bundle, "--against", "torch", "--json")
    assert len(json.loads(out)["levels"]) == 2
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("quads", [(), ("--quads",)], ids=["any", "quads"])
@pytest.mark.parametrize("element", host().elements, ids=lambda element: element.dtype)
def test_bench_linear_json(element, quads):
    sizes = ("--rows", 96, "--cols", 64, "--tokens", 20, "--sparsity", 0.75, "--group", 4, *quads)
    _, out, _ = rt3("bench", "linear", *sizes, "--dtype", element.dtype, "--json", check=0)
    facts = json.loads(out)
    assert {"ours_ms", "dense_ms", "dense_name", "speedup", "sparsity", "group", "max_abs_err"} <= facts.keys()
    # A narrower type may not pay for so small a layer; the largest error is that of what was taken.
    assert facts["dtype"] in (element.dtype, "float32")
    assert facts["sparsity"] == 0.75 and facts["max_abs_err"] < (1e-4 if facts["dtype"] == "float32" else 0.05)
    assert facts["speedup"] == pytest.approx(facts["dense_ms"] / facts["ours_ms"])


def test_version_and_help():
    assert rt3("--version", check=0)[1].startswith("rt3 0.")
    assert "compile" in rt3("--help", check=0)[1]


def test_config_sets_defaults(tmp_path, capsys):
    (tmp_path / "rt3.toml").write_text('[prune]\nsparsity = "0.6"\npattern-shape = "4x16"\n')
    assert main(["--config", str(tmp_path / "rt3.toml"), "prune", "random-tiny", "-o", str(tmp_path / "c")]) == 0
    assert len(json.loads((tmp_path / "c" / "checkpoint.json").read_text())["levels"]) == 1
    capsys.readouterr()
    (tmp_path / "bad.toml").write_text("[prune]\nsparsty = 1\n")
    assert "prune.sparsty is no option" in fails(
        capsys, 2, "--config", tmp_path / "bad.toml", "prune", "random-tiny", "-o", "x"
    )
    (tmp_path / "bad.toml").write_text("[tuner]\n")
    assert "choose from bench, compile" in fails(capsys, 2, "--config", tmp_path / "bad.toml", "devices")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["prune", "no-such-model", "-o", "x"], "no model 'no-such-model'"),
        (["prune", ".", "-o", "x"], "has no config.json"),
        (["prune", "random-tiny", "-o", "x", "--sparsity", "0.5,1.0"], "outside [0, 1)"),
        (["prune", "random-tiny", "-o", "x", "--sparsity", "half"], "one sparsity per level"),
        (["prune", "random-tiny", "-o", "x", "--pattern-shape", "4by32"], "rows x columns"),
        (["prune", "random-tiny", "-o", "x", "--patterns", "all"], "'all': give a number of patterns, or each"),
        (["prune", "random-tiny", "-o", "x", "--pattern-shape", "4x32", "--group", "3"], "choose one of 1, 2, 4"),
        (["prune", "random-tiny"], "required: -o/--output"),
        (["compile", "nothing", "-o", "x.so"], "is not a checkpoint"),
        (["run", "nothing.so", "-i", "x.npz"], "no such bundle"),
        (["inspect", "nothing"], "no such bundle"),
        (["bench", "linear", "--rows", "10", "--cols", "8", "--group", "4"], "does not divide"),
        (["bench", "linear", "--rows", "8", "--cols", "8", "--sparsity", "1"], "outside [0, 1)"),
        (["frobnicate"], "invalid choice"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_arguments(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, 2, *args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--device", "rpi9"], 2, "unknown device 'rpi9'"),
        (["--freqs", "1GHz"], 2, "--freqs: 1 for 3 levels: give one for each level"),
        (["--seq-len", "0"], 2, "at least 1"),
        (["--seq-len", "65"], 2, "exceeds the 64 positions"),
        (["--batch", "0"], 2, "batch 0"),
        (["--cross-compiler", "no-such-cc --flag"], 2, "no such program"),
        (["--cross-compiler", "false", "--seq-len", "8"], 1, "failed with 1"),
    ],
)
def test_bad_compiles_leave_nothing(capsys, saved_checkpoint, tmp_path, args, code, message):
    assert message in fails(capsys, code, "compile", saved_checkpoint, "-o", tmp_path / "x.so", *args)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_one_line_and_keeps_the_old_bundle(capsys, saved_checkpoint, tmp_path, monkeypatch):
    old = tmp_path / "x.so"
    old.write_text("old")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    err = fails(capsys, 1, "compile", saved_checkpoint, "-o", old, "--seq-len", "8")
    assert "No space left on device" in err
    assert [p.name for p in tmp_path.iterdir()] == ["x.so"] and old.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.npz", b"hello", "is not an .npz"),
        (
            "wrong.npz",
            {"tokens": np.zeros((1, 4), np.int64)},
            "no input 'tokens': choose from attention_mask, input_ids",
        ),
        ("float.npz", {"input_ids": np.zeros((1, 4))}, "dtype float64"),
        ("pickle.npz", {"input_ids": np.array([None])}, "is not an .npz of plain arrays"),
    ],
)
def test_bad_input_files(capsys, tiny_bundle, tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    assert message in fails(capsys, 2, "run", tiny_bundle, "-i", path, "-o", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_a_missing_compiler_of_the_host_is_said(capsys, saved_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "no C compiler found" in fails(capsys, 2, "compile", saved_checkpoint, "-o", tmp_path / "x.so")


def test_prune_with_a_pattern_for_each_block(tmp_path):
    assert main(["prune", "random-tiny", "-o", str(tmp_path / "t.ckpt"), "--patterns", "each"]) == 0
    levels = Checkpoint.load(tmp_path / "t.ckpt").levels
    assert [len(level.matrices) for level in levels] == [13] * 3
    for level in levels:
        for name, matrix in level.matrices.items():
            assert sorted(matrix.assignment.ravel()) == list(range(len(matrix.patterns.columns))), name


@pytest.mark.parametrize("embeddings", [False, True])
def test_prune_embeddings_only_when_asked(tmp_path, embeddings):
    option = ["--embeddings"] if embeddings else []
    assert main(["prune", "random-tiny", "-o", str(tmp_path / "c"), "--sparsity", "0.5", "--seed", "1", *option]) == 0
    matrices = Checkpoint.load(tmp_path / "c").levels[0].matrices
    assert ("embeddings.word_embeddings.weight" in matrices) is embeddings
    assert "embeddings.position_embeddings.weight" not in matrices


@pytest.fixture(scope="module")
def open_shape(tmp_path_factory):
    """Return the directory of an encoder whose configuration names no size of image."""
    folder = tmp_path_factory.mktemp("open")
    sizes = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_attention_heads": [1, 2], "decoder_hidden_size": 16}
    more = {
        "num_encoder_blocks": 2,
        "sr_ratios": [2, 1],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "mlp_ratios": [2, 2],
    }
    torch.manual_seed(0)
    transformers.SegformerModel(transformers.SegformerConfig(**sizes, **more)).save_pretrained(folder)
    return folder


def test_an_input_of_open_shape_is_asked_for_and_given(capsys, open_shape, tmp_path):
    checkpoint, bundle = tmp_path / "s.ckpt", tmp_path / "s.so"
    err = fails(capsys, 2, "prune", open_shape, "-o", checkpoint)
    assert "of a shape that its configuration leaves open, without image_size: give its --input-shape, channels" in err
    said(capsys, "prune", open_shape, "-o", checkpoint, "--sparsity", "0.5", "--input-shape", "3,32,24")
    said(capsys, "compile", checkpoint, "-o", bundle)
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 24)).astype(np.float32)
    saved = Checkpoint.load(checkpoint)
    with torch.no_grad():
        want = saved.torch_model(0)(torch.from_numpy(image)).last_hidden_state.numpy()
    with load(bundle) as compiled:
        got = compiled(pixel_values=image)["last_hidden_state"]
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        ("random-tiny", "3,32,32", "--input-shape (3, 32, 32): BertModel takes input_ids, of any length"),
        ("random-vit", "3,0,32", "--input-shape (3, 0, 32): give the axes behind the batch, each at least 1"),
        (
            "random-vit",
            "3,99999,99999",
            "--input-shape (3, 99999, 99999): give the axes behind the batch, each at least 1 and of",
        ),
        ("random-vit", "3x32x32", "'3x32x32': give the axes behind the batch, separated by commas"),
        ("random-vit", "224,224", "ViTModel fails on pixel_values (1, 224, 224)"),
    ],
)
def test_an_input_shape_that_cannot_be_is_one_line(capsys, tmp_path, model, shape, message):
    assert message in fails(capsys, 2, "prune", model, "-o", tmp_path / "x.ckpt", "--input-shape", shape)
    assert list(tmp_path.iterdir()) == []
