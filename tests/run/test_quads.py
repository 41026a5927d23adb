"""Quads of columns from pruning to a bundle: who multiplies them as they are, and that every call is exact."""

from dataclasses import replace

import numpy as np
import pytest

from rt3_tvm import Checkpoint, CompileOptions, PruneOptions, compile, prune
from rt3_tvm.cli.main import main
from rt3_tvm.errors import Rt3Error
from rt3_tvm.frontend import import_model
from rt3_tvm.pattern import PatternShape
from rt3_tvm.report import summary
from rt3_tvm.schedules.layout import FLOAT16, FLOAT32, INT8
from rt3_tvm.transform.context import references_of
from tests.run.test_dtypes import A53, A76, calls_of, lowered
from tests.run.test_int8 import A76_OPTIONS, SIZES
from tests.run.test_models import tiny

QUADS = PatternShape(4, 32, 4, 4)
CALLS = 2 * (SIZES["num_hidden_layers"] * (4 + 6) + 2)
"""Of two trials: four tensors are quantised and six layers read them, then the pooler's."""


@pytest.fixture(scope="module")
def checkpoint():
    return prune(tiny("BertModel", **SIZES), PruneOptions((0.25, 0.5), 0.25, shape=QUADS, block_rows=32))


def families(metadata):
    return {kernel["family"] for kernel in metadata["kernels"]}


def test_a_bundle_multiplies_quads_and_proves_itself(checkpoint, tmp_path):
    """Every call against integers; on the host and, where it is installed, under qemu for the core."""
    metadata = compile(checkpoint, tmp_path / "m.so", A76_OPTIONS).metadata
    assert families(metadata) >= {"quantise", "quad_linear_int8"} and "pattern_linear_int8" not in families(metadata)
    assert all("_v4q_" in k["symbol"] for k in metadata["kernels"] if k["family"] == "quad_linear_int8")
    for row in metadata["verified"]["int8"]:
        assert row["exact_calls"] == CALLS and row["exact_error"] < 2e-6 and row["float_error"] < 5e-5


def test_layers_that_read_one_tensor_share_its_quads(checkpoint):
    mod = lowered(import_model(checkpoint.dense_model(), 1, 20), checkpoint, element=INT8)
    read = [args[0] for args in calls_of(mod, "quantise")]
    assert len(read) == len(set(read)) == 4 * SIZES["num_hidden_layers"] + 1


@pytest.mark.parametrize(("cpu", "element"), [(A76, FLOAT32), (A76, FLOAT16), (A53, INT8)])
def test_who_multiplies_no_quads_takes_them_as_any_columns(checkpoint, cpu, element):
    """The very kernels and weights of a pattern set that says nothing of quads."""
    imported = import_model(checkpoint.dense_model(), 1, 20)
    mod = lowered(imported, checkpoint, cpu=cpu, element=element)
    single = replace(checkpoint, levels=tuple(replace(lv, matrices=singled(lv.matrices)) for lv in checkpoint.levels))
    assert mod.script() == lowered(imported, single, cpu=cpu, element=element).script()


def singled(matrices):
    """Return matrices whose columns are kept as they are, without saying that they are quads."""
    return {
        name: replace(m, patterns=replace(m.patterns, shape=replace(m.patterns.shape, adjacent=1)))
        for name, m in matrices.items()
    }


def test_calibrated_factors_are_those_of_features(checkpoint, tmp_path):
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (8, 40))
    np.savez(tmp_path / "typical.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    options = replace(A76_OPTIONS, calibrate=tmp_path / "typical.npz", lengths=(40,))
    metadata = compile(checkpoint, tmp_path / "m.so", options).metadata
    assert families(metadata) >= {"quantise_static", "quad_linear_int8"}
    assert all(row["exact_calls"] and row["exact_error"] < 2e-6 for row in metadata["verified"]["int8"])


def test_it_runs_here(checkpoint, tmp_path):
    """Proved call by call on whatever this machine multiplies int8 by."""
    try:
        options = CompileOptions(lengths=(20,), cache=False, dtype=("int8",))
        metadata = compile(checkpoint, tmp_path / "m.so", options).metadata
    except Rt3Error as error:
        pytest.skip(f"this machine has no int8: {error}")
    assert "quad_linear_int8" in families(metadata) and metadata["verified"]["int8"]


def test_a_decoder_computes_few_tokens_with_the_same_weights(tmp_path):
    """Each call is checked, and a length more costs no weights."""
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
    decoder, bytes_of = prune(tiny("GPT2LMHeadModel", **sizes), PruneOptions((0.5,), shape=QUADS)), {}
    for lengths in ((32,), (1, 4, 32)):
        options = CompileOptions("rk3588", cluster="big0", lengths=lengths, cache=False, dtype=("int8",))
        options = options if len(lengths) > 1 else replace(options, verify=False)
        metadata = compile(decoder, tmp_path / "m.so", options).metadata
        bytes_of[len(lengths)] = {s["level"]: s["bytes"] for s in metadata["weight_sections"] if s["level"] >= 0}
    assert bytes_of[1] == bytes_of[3]
    assert families(metadata) >= {"few_token_linear_int8", "quad_linear_int8"}
    assert {row["length"] for row in metadata["verified"]["int8"]} == {1, 4, 32}


def test_matrices_of_no_whole_quads_keep_single_columns(tmp_path):
    sizes = SIZES | {"hidden_size": 66, "intermediate_size": 132}
    checkpoint = prune(tiny("BertModel", **sizes), PruneOptions((0.5,), shape=QUADS))
    matrices = checkpoint.levels[0].matrices.values()
    assert {(m.backbone.shape[1], m.patterns.shape.adjacent) for m in matrices} == {(66, 1), (132, 4)}
    metadata = compile(checkpoint, tmp_path / "m.so", replace(A76_OPTIONS, lengths=(40,))).metadata
    assert "quad_linear_int8" in families(metadata) and metadata["verified"]["int8"][0]["exact_calls"]


def test_the_command_line_and_what_is_said(tmp_path, capsys):
    path = str(tmp_path / "m.ckpt")
    assert (
        main(["prune", "random-tiny", "-o", path, "--sparsity", "0.5", "--pattern-shape", "4x32q", "--group", "4"]) == 0
    )
    matrices = Checkpoint.load(path).levels[0].matrices.values()
    assert {str(m.patterns.shape) for m in matrices} == {"4x32q"}
    described = summary.describe(tmp_path / "m.ckpt")["matrices"].values()
    assert {row["adjacent"] for row in described} == {4}
    capsys.readouterr()
    assert main(["prune", "random-tiny", "-o", path, "--pattern-shape", "4x30q"]) == 2
    assert "its 30 columns are no whole quads: choose a multiple of 4" in capsys.readouterr().err


@pytest.fixture(scope="module")
def ordered():
    """Return a checkpoint whose quads are of columns in an order of their own."""
    options = PruneOptions((0.25, 0.5), 0.25, shape=QUADS, block_rows=32, order_columns=True)
    return prune(tiny("BertModel", **SIZES), options)


def test_matrices_that_read_one_tensor_share_an_order(ordered):
    tables = {name: m.backbone.table for name, m in ordered.levels[0].matrices.items()}
    assert all((np.sort(t) == np.arange(len(t))).all() and (t != np.arange(len(t))).any() for t in tables.values())
    first = "encoder.layer.0.attention.self.query.weight"
    alike = {name for name, t in tables.items() if np.array_equal(t, tables[first])}
    assert alike == {f"encoder.layer.0.attention.self.{name}.weight" for name in ("query", "key", "value")}
    assert len({t.tobytes() for t in tables.values()}) == 4 * SIZES["num_hidden_layers"] + 1


@pytest.mark.parametrize("static", [False, True])
def test_an_order_costs_a_table_and_every_call_is_exact(ordered, checkpoint, tmp_path, static):
    ordered.save(tmp_path / "m.ckpt")
    options = A76_OPTIONS
    if static:
        ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (8, 40))
        np.savez(tmp_path / "typical.npz", input_ids=ids, attention_mask=np.ones_like(ids))
        options = replace(options, calibrate=tmp_path / "typical.npz")
    metadata = compile(Checkpoint.load(tmp_path / "m.ckpt"), tmp_path / "m.so", options).metadata
    assert families(metadata) >= {"quantise_static" if static else "quantise", "quad_linear_int8"}
    for row in metadata["verified"]["int8"]:
        assert row["exact_calls"] == CALLS and row["exact_error"] < 2e-6 and row["float_error"] < 5e-5
    mod = lowered(import_model(ordered.dense_model(), 1, 20), ordered, element=INT8)
    assert len(calls_of(mod, "quantise")) == 4 * SIZES["num_hidden_layers"] + 1


@pytest.mark.parametrize(("cpu", "element"), [(A76, FLOAT32), (A53, INT8)])
def test_who_multiplies_no_quads_has_no_order(ordered, cpu, element):
    """But columns that ascend, as any have."""
    mod = lowered(import_model(ordered.dense_model(), 1, 20), ordered, cpu=cpu, element=element)
    assert "table" not in {r.kind for r in references_of(mod["main"].attrs)}
    for matrix in ordered.levels[0].matrices.values():
        columns, valid = matrix.group_columns()
        assert (np.diff(np.where(valid, columns, matrix.backbone.shape[1]), axis=1) >= 0).all()
        assert matrix.mask().sum() == 4 * valid.sum()


def test_it_computes_the_masked_model_in_float32(ordered, tmp_path):
    metadata = compile(ordered, tmp_path / "m.so", CompileOptions(lengths=(24,), cache=False)).metadata
    assert max(row["error"] for row in metadata["verified"]["errors"]) < 1e-5


def test_an_order_that_is_none_is_refused(ordered, tmp_path):
    matrices = ordered.levels[0].matrices
    name, matrix = next(iter(matrices.items()))
    twice = np.zeros_like(matrix.backbone.table)
    spoilt = {n: replace(m, backbone=replace(m.backbone, table=twice)) if n == name else m for n, m in matrices.items()}
    replace(ordered, levels=(replace(ordered.levels[0], matrices=spoilt),)).save(tmp_path / "m.ckpt")
    with pytest.raises(Rt3Error, match=f"{name}: table is no order of its columns, expected each once"):
        Checkpoint.load(tmp_path / "m.ckpt")
    with pytest.raises(Rt3Error, match="only quads have an order: give 4x32q"):
        PruneOptions(order_columns=True)
