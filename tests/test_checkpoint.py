"""Checkpoints: round trip, and every way a file can be wrong."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from rt3_tvm import model as models
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.checkpoint_format import sealed_table, stamp
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.pattern import PatternShape
from rt3_tvm.prune import PruneOptions, prune_one_shot

ROOT = Path(__file__).parent.parent


@pytest.fixture
def copy(saved_checkpoint, tmp_path):
    return shutil.copytree(saved_checkpoint, tmp_path / "copy")


def test_round_trip(tiny_checkpoint, saved_checkpoint):
    loaded = Checkpoint.load(saved_checkpoint)
    for name, value in tiny_checkpoint.weights.items():
        np.testing.assert_array_equal(loaded.weights[name], value)
    for a, b in zip(tiny_checkpoint.levels, loaded.levels, strict=True):
        assert a.sparsity == b.sparsity and a.matrices.keys() == b.matrices.keys()
        for name in a.matrices:
            np.testing.assert_array_equal(a.matrices[name].mask(), b.matrices[name].mask())


def test_torch_model_is_the_dense_one_with_masks(tiny_checkpoint):
    dense, masked = (m.state_dict() for m in (tiny_checkpoint.dense_model(), tiny_checkpoint.torch_model(1)))
    matrices = tiny_checkpoint.levels[1].matrices
    assert matrices.keys() < dense.keys()
    for name, value in dense.items():
        want = value * torch.from_numpy(matrices[name].mask()) if name in matrices else value
        assert torch.equal(masked[name], want)
    with pytest.raises(Rt3Error, match="levels 0 to 2"):
        tiny_checkpoint.torch_model(3)


def test_levels_are_as_sparse_as_asked(tiny_checkpoint):
    for level in tiny_checkpoint.levels:
        assert level.density == pytest.approx(1 - level.sparsity, abs=0.02)


def change(folder, file, edit):
    tensors = load_file(folder / file)
    edit(tensors)
    save_file(tensors, folder / file)


NAME = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(NAME), f"'{NAME}' is missing"),
        (lambda t: t.update({NAME: t[NAME][:-1].copy()}), r"\[47, 48\], expected float32 \[48, 48\]"),
        (lambda t: t.update({NAME: t[NAME] + 1}), f"'{NAME}' was altered"),
        (lambda t: t.update({NAME: t[NAME].astype(np.float64)}), "is float64"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "'extra' is not listed"),
    ],
)
def test_changed_tensors_are_named(copy, edit, message):
    change(copy, "weights.safetensors", edit)
    with pytest.raises(Rt3Error, match=message):
        Checkpoint.load(copy)


def test_truncated_file(copy):
    file = copy / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Rt3Error, match=r"weights\.safetensors' cannot be read"):
        Checkpoint.load(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a checkpoint"),
        ("[]", "format version None"),
        ('{"format_version": 99}', "format version 99"),
        ('{"format_version": 3}', "damaged"),
    ],
)
def test_bad_tables(copy, text, message):
    (copy / "checkpoint.json").write_text(text)
    with pytest.raises(Rt3Error, match=message):
        Checkpoint.load(copy)


def edit_table(folder, path, value):
    """Change one value of the table, its checksum too; ``...`` takes it out."""
    table = json.loads((folder / "checkpoint.json").read_text())
    *parents, last = path
    inner = table
    for name in parents:
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    (folder / "checkpoint.json").write_text(json.dumps(sealed_table(table)))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("levels",), [], "expected a list of at least 1"),
        (("levels",), None, "levels is None"),
        (("levels", 0, "sparsity"), float("nan"), r"sparsity is nan, expected a number in \[0, 1\]"),
        (("levels", 0, "sparsity"), 0.99, "do not ascend"),
        (("levels", 2, "sparsity"), 1.5, r"sparsity is 1.5, expected a number in \[0, 1\]"),
        (("levels", 0, "frequency_hz"), -1e9, "frequency_hz is -1000000000.0"),
        (("levels", 0, "frequency_hz"), 1e9, "do not descend"),
        (("levels", 0, "accuracy"), "good", "accuracy is 'good'"),
        (("model",), "BertModel", "model is 'BertModel', expected a table"),
        (("model", "config"), [], r"config is \[\]"),
        (("matrices", NAME, "shape"), [10**12, 10**12], r"\(48, 48\), expected \(1000000000000, 1000000000000\)"),
        (("matrices", NAME, "shape"), [48], "expected a list of 2"),
        (("matrices", NAME, "shape", 0), 48.0, "is 48.0, expected an integer"),
        (("matrices", NAME, "block_rows"), 4, r"backbone is \(1, "),
        (("matrices", NAME, "block_rows"), 0, "block_rows is 0"),
        (("matrices", NAME, "transposed"), 1, "transposed is 1"),
        (("matrices", NAME, "levels"), [], "at least 1"),
        (("matrices", NAME, "levels", 0, "group"), 5, "group 5 does not divide"),
        (("matrices", NAME, "levels", 0, "rows"), 10**15, "patterns is"),
        (("matrices", NAME, "levels", 0, "cols"), 2, "points outside"),
        (("matrices", NAME, "levels", 0, "extra"), 2, "unexpected keyword"),
        (("matrices",), {"none": {}}, "matrices.none.shape is None"),
        (("skipped",), 3, "skipped is 3"),
        (("tensors",), {}, "is None, expected a table"),
        (("tensors", "weights.safetensors", NAME), 3, "is 3, expected a table"),
        (("tensors", "weights.safetensors", NAME, "sha256"), ..., "sha256 is None"),
    ],
)
def test_forged_tables_are_refused(copy, path, value, message):
    edit_table(copy, path, value)
    with pytest.raises(Rt3Error, match=message):
        Checkpoint.load(copy)


@pytest.mark.parametrize(("old", "new"), [('"transposed": false', '"transposed": true'), ('"group": 4', '"group": 2')])
def test_an_altered_table_is_refused(copy, old, new):
    path = copy / "checkpoint.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(Rt3Error, match="altered: its checksum differs"):
        Checkpoint.load(copy)


def test_deep_json_is_refused(copy):
    (copy / "checkpoint.json").write_text('{"format_version": ' + "[" * 100_000)
    with pytest.raises(Rt3Error, match="not a checkpoint"):
        Checkpoint.load(copy)


@pytest.mark.parametrize("name", ["checkpoint.json", "weights.safetensors", "patterns.safetensors", "tokenizer.json"])
def test_a_pipe_is_not_waited_for(copy, name):
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    if name == "tokenizer.json":
        assert not Checkpoint.load(copy).tokenizer
    else:
        with pytest.raises(Rt3Error, match=rf"{name}' is no regular file"):
            Checkpoint.load(copy)


def sealed(folder, name, edit):
    """Change a tensor of the patterns and forge its checksum, as someone would who means to."""
    change(folder, "patterns.safetensors", lambda t: t.update({name: edit(t[name])}))
    value = load_file(folder / "patterns.safetensors")[name]
    stamp = {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": hashlib.sha256(value.data).hexdigest()}
    edit_table(folder, ("tensors", "patterns.safetensors", name), stamp)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("backbone", lambda v: v + 10**6, r"points outside \[0, 48\)"),
        ("backbone", lambda v: -v, "points outside"),
        ("backbone", lambda v: v[:, ::-1].copy(), "does not ascend"),
        ("backbone", lambda v: v[:, :0].copy(), "expected columns and patterns"),
        ("backbone", lambda v: np.repeat(v, 3, 0), "backbone is"),
        ("0/patterns", np.zeros_like, "does not ascend"),
        ("0/patterns", lambda v: v + 32, "points outside"),
        ("0/patterns", lambda v: v.astype(np.float32), "is float32, expected int32"),
        ("0/patterns", lambda v: v[0], "expected 3 axes"),
        ("1/assignment", lambda v: v + 1000, "assignment points outside"),
        ("1/assignment", lambda v: v.T.copy(), "assignment is"),
        ("1/assignment", lambda v: v[:0].copy(), "assignment is"),
    ],
)
def test_forged_patterns_are_refused(copy, name, edit, message):
    sealed(copy, f"{NAME}/{name}", edit)
    with pytest.raises(Rt3Error, match=message):
        Checkpoint.load(copy)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", 96, r"is \[48\], its model's is \[96\]|is \[500, 48\], its model's is \[500, 96\]"),
        ("vocab_size", 10**12, r"its model's is \[1000000000000, 48\]"),
        ("num_hidden_layers", 3, "the checkpoint's weights lack 'encoder.layer.2"),
        ("num_attention_heads", 5, "do not fit"),
        ("hidden_act", "magic", "do not fit"),
        ("hidden_size", None, "do not fit"),
    ],
)
def test_a_model_of_another_size_is_refused(copy, key, value, message):
    edit_table(copy, ("model", "config", key), value)
    checkpoint = Checkpoint.load(copy)
    with pytest.raises(Rt3Error, match=message):
        checkpoint.dense_model()


def test_foreign_directories_are_not_overwritten(tiny_checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(Rt3Error, match="is not a checkpoint"):
        tiny_checkpoint.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


@pytest.fixture
def in_quads(tmp_path):
    """Return the folder of a checkpoint whose columns are kept in quads, and what was saved there."""
    options = PruneOptions((0.5, 0.75), 0.25, PatternShape(4, 32, 4, 4))
    checkpoint = prune_one_shot(models.load("random-tiny"), options)
    checkpoint.save(tmp_path / "quads")
    return tmp_path / "quads", checkpoint


def test_quads_are_said_where_there_are_any(in_quads, saved_checkpoint):
    """What has none is as it was before there were any, and has the same digest."""
    folder, checkpoint = in_quads
    loaded = Checkpoint.load(folder)
    assert loaded.digest == checkpoint.digest
    for a, b in zip(checkpoint.levels, loaded.levels, strict=True):
        for name, matrix in a.matrices.items():
            assert b.matrices[name].patterns.shape == matrix.patterns.shape and matrix.patterns.shape.adjacent == 4
            np.testing.assert_array_equal(b.matrices[name].mask(), matrix.mask())
    tables = [json.loads((f / "checkpoint.json").read_text())["matrices"] for f in (folder, saved_checkpoint)]
    assert [{tuple(lv) for m in t.values() for lv in m["levels"]} for t in tables] == [
        {("adjacent", "cols", "group", "rows")},
        {("cols", "group", "rows")},
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"columns are kept one by one or in quads, not 3 together"),
        (0, r"adjacent is 0, expected an integer of at least 1"),
    ],
)
def test_quads_of_another_size_are_refused(in_quads, value, message):
    folder, _ = in_quads
    edit_table(folder, ("matrices", NAME, "levels", 0, "adjacent"), value)
    with pytest.raises(Rt3Error, match=message):
        Checkpoint.load(folder)


@pytest.mark.parametrize("part", ["backbone", "patterns"])
def test_columns_that_are_no_quads_are_refused(copy, part):
    """Though a table says so: the first level of a matrix whose columns are any."""
    edit_table(copy, ("matrices", NAME, "levels", 0, "adjacent"), 4)
    if part == "patterns":  # of a backbone of whole quads
        change_backbone(copy)
    with pytest.raises(Rt3Error, match=rf"{NAME}: {part}: columns is .*, expected (whole runs|a multiple) of 4"):
        Checkpoint.load(copy)


def change_backbone(folder):
    """Let the first matrix keep its first columns."""
    tensors, name = load_file(folder / "patterns.safetensors"), f"{NAME}/backbone"
    tensors[name] = np.tile(np.arange(tensors[name].shape[1], dtype=np.int32), (len(tensors[name]), 1))
    save_file(tensors, folder / "patterns.safetensors")
    edit_table(folder, ("tensors", "patterns.safetensors", name), stamp(tensors[name]))


def test_failed_save_leaves_the_old_checkpoint(copy, tiny_checkpoint, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rt3_tvm.checkpoint.save_file", fail)
    with pytest.raises(JobError, match="No space left on device"):
        tiny_checkpoint.save(copy)
    monkeypatch.undo()
    assert Checkpoint.load(copy).levels[0].sparsity == 0.5
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_nan_weights_are_named(copy):
    model = models.load("random-tiny")
    model.encoder.layer[1].output.dense.weight.data[3, 4] = float("nan")
    with pytest.raises(Rt3Error, match=r"encoder\.layer\.1\.output\.dense\.weight' has 1 values"):
        prune_one_shot(model, PruneOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": (0.5, 1.0)}, r"outside \[0, 1\)"),
        ({"sparsity": (-0.1,)}, r"outside \[0, 1\)"),
        ({"sparsity": (0.9, 0.5)}, "ascending"),
        ({"sparsity": ()}, "no sparsity"),
        ({"block_sparsity": 0.6}, "exceeds the first level"),
        ({"shape": PatternShape(8, 32, 8), "block_rows": 100}, "multiple of the group 8"),
        ({"patterns": 0}, "at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(Rt3Error, match=message):
        PruneOptions(**options)


def test_sparsity_zero_keeps_everything():
    checkpoint = prune_one_shot(models.load("random-tiny"), PruneOptions(sparsity=(0.0, 0.5)))
    assert checkpoint.levels[0].density == 1.0


def test_excluded_matrices_stay_dense():
    checkpoint = prune_one_shot(models.load("random-tiny"), PruneOptions(exclude=("pooler.*",)))
    assert checkpoint.skipped == {"pooler.dense.weight": "excluded"}
    assert "pooler.dense.weight" not in checkpoint.levels[0].matrices


def test_no_pickle_in_the_package():
    sources = Path(models.__file__).parent.rglob("*.py")
    assert not [p for p in sources if "import pickle" in p.read_text() or "torch.load" in p.read_text()]


def test_nothing_left_to_prune_says_why():
    with pytest.raises(Rt3Error, match=r"pooler\.dense\.weight: excluded"):
        prune_one_shot(models.load("random-tiny"), PruneOptions(exclude=("*",)))
    config = transformers.GPT2Config(vocab_size=100, n_embd=48, n_layer=0, n_head=4, bos_token_id=0, eos_token_id=0)
    with pytest.raises(Rt3Error, match="none was found in the graph"):
        prune_one_shot(transformers.GPT2Model(config).eval(), PruneOptions())


def test_damaged_checkpoints_are_refused_or_the_same_model(saved_checkpoint, tmp_path):
    seed, cases = os.environ.get("RT3_FUZZ_SEED", "1"), 200 * int(os.environ.get("RT3_FUZZ_CASES", "1"))
    command = [sys.executable, "-m", "tests.fuzz_checkpoints", saved_checkpoint, tmp_path, seed, cases]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    refused, right = map(int, re.findall(r"\d+", done.stdout))
    assert refused + right == cases and refused > cases / 2
