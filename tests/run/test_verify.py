"""Every bundle is compared with PyTorch before it gets its name: what is right passes, what is wrong leaves no file."""

import json
import platform
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import tvm_ffi
from tvm import tirx

from rt3_tvm import CompileOptions, PruneOptions, compile, prune
from rt3_tvm.codegen import emulate
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.export.padding import Padding
from rt3_tvm.model import InputSpec, OutputSpec, inputs_of
from rt3_tvm.runtime.check import read_metadata
from rt3_tvm.schedules import SCHEDULES
from rt3_tvm.search import setting
from rt3_tvm.transformer_lm import TransformerLM, TransformerLMConfig
from rt3_tvm.trials import Trial, compare, reference, shorter_length, trials_of, worst_difference
from tests.run.test_models import tiny
from tests.search import small

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
OPTIONS = CompileOptions(lengths=(9,), batch=2, cache=False)


@pytest.fixture(scope="module")
def checkpoint():
    return prune(tiny("BertModel", **SMALL), PruneOptions((0.5,)))


def test_a_right_bundle_says_how_right_it_is(checkpoint, tmp_path):
    report = compile(checkpoint, tmp_path / "m.so", OPTIONS)
    facts = read_metadata(tmp_path / "m.so")["verified"]
    assert facts == json.loads(json.dumps(report.metadata["verified"])) and "verify" in report.seconds
    (row,) = facts["errors"]
    assert (row["level"], row["length"]) == (0, 9) and 0 < row["error"] < facts["tolerance"]["float32"]


def spoil(monkeypatch, family: str) -> None:
    """Make all kernels of a family write values that are 1 % too large."""

    def schedule(func, cpu):
        func = SPOILT.schedule(func, cpu)
        output = func.params[-1]

        def wrong(store):
            if not store.buffer.same_as(output):
                return store
            return tirx.BufferStore(output, store.value * tirx.const(1.01, "float32"), store.indices)

        return func.with_body(tvm_ffi.structural_map(func.body, (tirx.BufferStore, wrong)))

    SPOILT = SCHEDULES[family]
    monkeypatch.setitem(SCHEDULES, family, replace(SPOILT, schedule=schedule))


@pytest.mark.parametrize(
    ("family", "composite"),
    [
        ("pattern_linear", r"rt3.linear_bias of 'encoder.layer.0.attention.self.query.weight'"),
        ("attention", "rt3.attention"),
        ("layer_norm", "rt3.layer_norm"),
        ("embedding", "rt3.embedding"),
    ],
)
def test_a_wrong_kernel_is_named_and_leaves_no_file(checkpoint, tmp_path, monkeypatch, family, composite):
    spoil(monkeypatch, family)
    where = f"first to differ is {composite}[^\n]*{family}\\w*, call [0-9]+\\), by [^\n]*$"
    with pytest.raises(JobError, match=rf"level 0, length 9: output '\w+' is off by [^\n]*; {where}"):
        compile(checkpoint, tmp_path / "m.so", OPTIONS)
    assert not list(tmp_path.iterdir())


def test_padding_that_leaks_is_caught(tmp_path, monkeypatch):
    """SigLIP pools the last token: behind a shorter input stands padding by then, if that were allowed."""
    torch.manual_seed(0)
    config = transformers.SiglipTextConfig(**SMALL, max_position_embeddings=16)
    checkpoint = prune(transformers.SiglipTextModel(config).eval(), PruneOptions((0.5,)))
    monkeypatch.setattr("rt3_tvm.export.padding.padding_of", lambda *_: Padding.MASKED)
    with pytest.raises(JobError, match=r"output 'pooler_output' is off [^\n]* padded to 9 tokens$"):
        compile(checkpoint, tmp_path / "m.so", OPTIONS)


def test_a_bundle_that_was_not_verified_says_so(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("RT3_CACHE_DIR", str(tmp_path / "cache"))
    kept = replace(OPTIONS, cache=True)
    compile(checkpoint, tmp_path / "m.so", replace(kept, verify=False))
    assert read_metadata(tmp_path / "m.so")["verified"] == {"skipped": "--no-verify"}
    # Whoever asks for a verified one does not get this one from the cache, and the verified one comes from it verified.
    assert not compile(checkpoint, tmp_path / "m.so", kept).from_cache
    again = compile(checkpoint, tmp_path / "m.so", kept)
    assert again.from_cache and again.metadata["verified"]["errors"]


IDS = (InputSpec("input_ids", 50, fill=3), InputSpec("attention_mask", 2, mask=True))


def test_trials_of_tokens():
    trials = trials_of(IDS, 3, 32)
    shapes = {t.name: t.real.shape for t in trials}
    assert {t.real.shape for t in trials} == {(3, 32), (3, 22), (1, 22), (1, 32)}
    assert shapes["no mask given"] == (1, 22)
    padded = [t.name for t in trials if "padded" in t.name]
    assert sorted(padded) == ["left-padded"] * 2 + ["right-padded"] * 2
    for trial in trials:
        ids, mask = trial.inputs["input_ids"], trial.inputs.get("attention_mask")
        assert (ids >= 0).all() and (ids < 50).all() and (ids[~trial.real] == 3).all()
        assert (mask is None) == (trial.name == "no mask given")
        assert mask is None or (mask == trial.real).all()
        if "padded" in trial.name:
            counts = trial.real.sum(1)
            assert len(set(counts)) == 3 and counts.min() >= 1 and counts.max() < trial.real.shape[1]
            edge = trial.real[:, 0] if trial.name == "right-padded" else trial.real[:, -1]
            assert edge.all() and (np.diff(trial.real.astype(int)) != 0).sum() == 3


@pytest.mark.parametrize(
    ("below", "length"), [(0, 1), (0, 2), (0, 16), (16, 17), (16, 18), (32, 128), (0, 24), (127, 128)]
)
def test_the_shorter_length(below, length):
    shorter = shorter_length(below, length)
    fits = [n for n in range(below + 1, length) if n % 16]
    assert shorter in fits if fits else shorter == 0


def difference(axes, got, want, real=((True, False),)):
    trial = Trial("right-padded", {}, np.array(real))
    arrays = ({"y": np.asarray(v, np.float32)} for v in (got, want))
    return worst_difference((OutputSpec("y", axes),), trial, *arrays)


@pytest.mark.parametrize(
    ("axes", "got", "want", "error"),
    [
        (("batch", "length", 1), [[[2.0], [9.0]]], [[[2.0], [np.nan]]], 0.0),  # padding may be anything
        (("batch", "length", 1), [[[2.2], [9.0]]], [[[2.0], [9.0]]], 0.1),
        (("batch", "length", 1), [[[np.nan], [9.0]]], [[[2.0], [9.0]]], np.inf),
        (("batch", 2), [[4.0, 1.0]], [[4.0, 3.0]], 0.5),  # no tokens: whole
        (("batch", 2), [[0.02, 0.01]], [[0.01, 0.01]], 0.1),  # against 0.1
        (("batch", 2), [[-np.inf, 1.0]], [[-np.inf, 1.0]], 0.0),
        (("batch", 2), [[-np.inf, 1.0]], [[2.0, 1.0]], np.inf),
    ],
)
def test_how_far_outputs_are_apart(axes, got, want, error):
    assert difference(axes, got, want).error == pytest.approx(error, rel=1e-4)


def test_outputs_that_do_not_compare():
    assert difference(("batch", 2), [[1.0]], [[1.0, 1.0]]).reason == "its shape is (1, 1), not (1, 2)"
    with pytest.raises(JobError, match="PyTorch gives NaN in output 'y'"):
        difference(("batch", "length"), [[1.0, 1.0]], [[np.nan, 1.0]])
    trial = Trial("full mask", {}, np.array([[True]]))
    found = worst_difference((OutputSpec("y", ("batch",)),), trial, {"y": np.ones(1)}, {"z": np.ones(1)})
    assert not found.tolerated and "does not" in found.reason


@pytest.mark.parametrize("side", ["right-padded", "left-padded"])
def test_outputs_that_read_padding_in_torch_itself_are_not_compared(side):
    """CLIP's text encoder pools the first token where it finds no end: a padded one that sees nothing, or a real one."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(**SMALL, max_position_embeddings=16)
    model = transformers.CLIPTextModel(config).eval()
    outputs = (OutputSpec("last_hidden_state", ("batch", "length", 32)), OutputSpec("pooler_output", ("batch", 32)))
    trial = next(t for t in trials_of(inputs_of(model), 2, 9) if t.name == side)
    want = reference(model, trial)
    found = compare(model, outputs, trial, want | {"pooler_output": want["pooler_output"] + 1}, want)
    assert found.tolerated == (side == "left-padded")
    assert not compare(
        model, outputs, trial, want | {"last_hidden_state": want["last_hidden_state"] + 1}, want
    ).tolerated


class Forgetful(TransformerLM):
    """A model that leaves out its mask when it is exported, as some of transformers' branches on export do."""

    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids, None if torch.compiler.is_exporting() else attention_mask)


@pytest.fixture
def forgetful():
    torch.manual_seed(0)
    return Forgetful(TransformerLMConfig(50, 32, 64, 2, 1, 16)).eval()


REFUSED = (
    r"Forgetful cannot be compiled: torch.export changes it, its output 'logits' is off by [^\n]*left-padded[^\n]*$"
)


def test_a_model_that_export_changes_is_not_pruned(forgetful):
    with pytest.raises(Rt3Error, match=REFUSED):
        prune(forgetful, PruneOptions((0.5,)))


def test_a_model_that_draws_random_numbers_is_one_line():
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL, image_size=32, patch_size=8)).eval()
    told = r"^ViTMAEModel cannot be compiled: it draws random numbers, its output [^\n]* from one run to the next$"
    with pytest.raises(Rt3Error, match=told):
        prune(model, PruneOptions((0.5,)))


def test_a_model_that_export_changes_is_not_searched(forgetful, monkeypatch):
    monkeypatch.setattr(setting, "load_task", lambda *_: (forgetful, None))
    with pytest.raises(Rt3Error, match=REFUSED):
        setting.load_setting("any", small.OPTIONS, None)


ARM = Path(__file__).parent.parent / "arm" / "cortex-a53.toml"


def compile_for_arm(checkpoint, path):
    """Compile for another machine, or skip."""
    if platform.machine() == "aarch64":
        pytest.skip("this machine is the other one")
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.importorskip("ziglang", reason="no C compiler for ARM: install gcc-aarch64-linux-gnu or ziglang")
    return compile(checkpoint, path, replace(OPTIONS, device=str(ARM)))


def test_a_bundle_for_another_machine_is_verified_by_its_host_twin(checkpoint, tmp_path):
    assert compile_for_arm(checkpoint, tmp_path / "m.so").seconds["verify"] > 0
    facts = read_metadata(tmp_path / "m.so")["verified"]
    assert facts["what"].startswith("its kernels, built for") and len(facts["errors"]) == 1
    emulated = facts["emulated"]
    if any(shutil.which(f"qemu-aarch64{s}") for s in ("", "-static")) and Path("/usr/aarch64-linux-gnu").is_dir():
        assert "-cpu cortex-a53" in emulated["command"] and emulated["errors"][0]["error"] < 5e-5
    else:
        assert emulated["skipped"]


def test_a_wrong_kernel_for_another_machine_is_caught_here(checkpoint, tmp_path, monkeypatch):
    spoil(monkeypatch, "layer_norm")
    with pytest.raises(JobError, match=r"first to differ is rt3\.layer_norm"):
        compile_for_arm(checkpoint, tmp_path / "m.so")
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_under_qemu_alone_is_caught(checkpoint, tmp_path, monkeypatch):
    """The twin is right, the machine code for the other CPU is not."""
    if not any(shutil.which(f"qemu-aarch64{s}") for s in ("", "-static")):
        pytest.skip("qemu-aarch64 is not installed: install qemu-user")
    run = emulate.Emulator.run
    monkeypatch.setattr(emulate.Emulator, "run", lambda *a: {name: value * 1.01 for name, value in run(*a).items()})
    with pytest.raises(JobError, match=r"the bundle is wrong under [^\n]*qemu-aarch64[^\n]*its kernels are right here"):
        compile_for_arm(checkpoint, tmp_path / "m.so")
    assert not list(tmp_path.iterdir())


def test_what_a_classifier_makes_of_a_padded_first_token_is_not_compared():
    """DeBERTa zeroes the embeddings of padding, so that other ids do not show that the first token is read."""
    torch.manual_seed(0)
    config = transformers.DebertaV2Config(**SMALL, max_position_embeddings=16, pooler_hidden_size=32)
    model = transformers.DebertaV2ForSequenceClassification(config).eval()
    outputs = (OutputSpec("logits", ("batch", 2)),)
    for trial in (t for t in trials_of(inputs_of(model), 2, 9) if "padded" in t.name):
        want = {"logits": reference(model, trial)["logits"]}
        found = compare(model, outputs, trial, {"logits": want["logits"] + 1}, want)
        assert found.tolerated == (trial.name == "left-padded")
        assert not model.deberta.encoder.layer[0].output.LayerNorm._forward_hooks
