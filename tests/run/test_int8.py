"""int8 through the compiler: what is built, how it proves itself, and what is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm_ffi
from tvm import tirx

from rt3_tvm import CompileOptions, PruneOptions, compile, device, load, prune
from rt3_tvm.cli.main import main
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.frontend import import_model
from rt3_tvm.pattern import PatternShape
from rt3_tvm.report import summary
from rt3_tvm.schedules import KERNEL_ATTR, SCHEDULES
from rt3_tvm.schedules.cpu import DOT_COSTS, CpuShape
from rt3_tvm.schedules.layout import FLOAT16, FLOAT32, INT8
from rt3_tvm.schedules.linear_decisions import MatrixShape
from rt3_tvm.schedules.linear_plan import LinearPlan, TokenCount, plan_linear, planned_element
from rt3_tvm.trials import TOLERANCES, rms_error
from tests.run.test_dtypes import calls_of, lowered, values_of
from tests.run.test_models import tiny, xlnet

A76 = CpuShape.of(device.load("rk3588").with_cluster("big0").cluster)
A53 = CpuShape.of(device.load("rk3399").cluster)
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 50,
}
A76_OPTIONS = CompileOptions("rk3588", cluster="big0", lengths=(9,), batch=2, cache=False, dtype=("int8",))


@pytest.fixture(scope="module")
def checkpoint():
    return prune(tiny("BertModel", **SIZES), PruneOptions((0.25, 0.5)))


@pytest.fixture(scope="module")
def imported(checkpoint):
    return import_model(checkpoint.dense_model(), 1, 20)


def test_layers_that_read_one_tensor_share_its_quantiser(imported, checkpoint):
    mod = lowered(imported, checkpoint, element=INT8)
    read = [args[0] for args in calls_of(mod, "quantise")]
    assert (
        len(read) == len(set(read)) == 4 * SIZES["num_hidden_layers"] + 1
    )  # q, k and v; attention's output; FFN; pooler
    assert set(values_of(mod).values()) == {"int32"} and not calls_of(mod, "pattern_linear")
    kept = values_of(lowered(imported, checkpoint, element=INT8, keep_float=("*.query.weight", "pooler*")))
    assert {name for name, dtype in kept.items() if dtype == "float32"} == {
        name for name in kept if "query" in name or name.startswith("pooler")
    }


@pytest.mark.parametrize("name", ["A76", "A53"])
@pytest.mark.parametrize("tokens", [TokenCount(1, 20), TokenCount(3, 100), TokenCount(1, 1)], ids=str)
def test_a_plan_can_be_read_back(name, tokens):
    cpu = {"A76": A76, "A53": replace(A53, costs=((FLOAT32, A53.cost(FLOAT32)), (INT8, DOT_COSTS["sdot"])))}[name]
    plan = plan_linear(cpu, MatrixShape(128, 64, 20, 4), tokens, INT8)
    assert plan.quantised is not None and plan.quantised.dot == cpu.dot
    assert LinearPlan.of(plan.to_attrs()) == plan and str(LinearPlan.of(plan.to_attrs())) == str(plan)
    assert re.fullmatch(r"((pattern_linear_i8_v4_r4x\d|few_token_linear_i8_v4_r4)_t\d+_k20\+?)+", str(plan))


def test_what_is_no_faster_in_int8_stays_wider():
    """Among all that a core has: float16 where that is fastest, float32 where nothing gains."""
    matrix = MatrixShape(384, 384, 96, 4)
    assert planned_element(A76, matrix, INT8) is INT8
    costs = dict(A76.costs)
    slow = {INT8: replace(costs[INT8], fma=50.0)}
    assert planned_element(replace(A76, costs=tuple((costs | slow).items())), matrix, INT8) is FLOAT16
    slow |= {FLOAT16: replace(costs[FLOAT16], fma=50.0)}
    assert planned_element(replace(A76, costs=tuple((costs | slow).items())), matrix, INT8) is FLOAT32


@pytest.fixture(scope="module")
def built(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "m.so"
    options = replace(
        A76_OPTIONS,
        lengths=(9, 40),
        dtype=("float32", "int8"),
        keep_float=("*.query.weight",),
        twin=path.with_name("twin.so"),
    )
    return path, compile(checkpoint, path, options).metadata


def test_levels_prove_themselves_each_by_its_own_measure(built):
    path, metadata = built
    verified = metadata["verified"]
    assert verified["tolerance"] == {"float32": 5e-5, "int8": 2**-3}
    errors = {(row["level"], row["length"]): row["error"] for row in verified["errors"]}
    assert max(e for (level, _), e in errors.items() if level == 0) < 1e-5
    assert all(1e-4 < e < 0.1 for (level, _), e in errors.items() if level == 1)
    assert [(row["level"], row["length"]) for row in verified["int8"]] == [(1, 9), (1, 40)]
    for row in verified["int8"]:
        # A quantiser and a layer each for value, attention's output and both of the FFN, with key and pooler, of two trials.
        assert (
            row["exact_calls"] == 2 * (SIZES["num_hidden_layers"] * (4 + 5) + 2)
            and row["exact_error"] < 2e-6
            and row["float_error"] < 5e-5
        )
        assert row["rounded_calls"] == 2 * SIZES["num_hidden_layers"] and 1e-5 < row["rounded_by"] < 2**-8
    text = "\n".join(map(str, summary.tables(summary.describe(path))))
    assert "every call of int8 against integers; attention in float16 against NumPy" in text


def test_the_twin_computes_the_same_here(built, checkpoint):
    """It is what accuracy is measured with: float32 as PyTorch, int8 near it."""
    path, metadata = built
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 30))
    with load(path.with_name("twin.so")) as twin:
        assert twin.metadata["twin_of"] == "rk3588" and twin.metadata["levels"] == metadata["levels"]
        for level, (least, most) in enumerate(((0.0, 1e-5), (1e-4, 0.1))):
            twin.set_level(level)
            with torch.inference_mode():
                wanted = checkpoint.torch_model(level)(torch.from_numpy(ids)).last_hidden_state.numpy()
            assert least < rms_error(twin(input_ids=ids)["last_hidden_state"], wanted) < most


def test_a_bundle_for_this_machine_has_no_twin(checkpoint, tmp_path):
    here = CompileOptions(lengths=(9,), cache=False, twin=tmp_path / "twin.so")
    with pytest.raises(Rt3Error, match=r"^twin: the bundle runs on this machine itself$"):
        compile(checkpoint, tmp_path / "m.so", here)
    with pytest.raises(Rt3Error, match=r"^twin is what verifies a bundle: it needs verify$"):
        CompileOptions(twin=tmp_path / "twin.so", verify=False)
    assert not list(tmp_path.iterdir())


def test_dtypes_stand_in_the_metadata(built):
    _, metadata = built
    assert [row.get("dtype", "float32") for row in metadata["levels"]] == ["float32", "int8"]
    for name, matrix in metadata["matrices"].items():
        wanted = ["float32", "float32" if "query" in name else "int8"]
        assert [row.get("dtype", "float32") for row in matrix["levels"]] == wanted
    assert {k["family"] for k in metadata["kernels"]} >= {"quantise", "pattern_linear_int8", "pattern_linear"}


def test_weights_take_a_third_of_the_room(checkpoint, tmp_path):
    bytes_of = {}
    for dtype in ("float32", "int8"):
        options = replace(A76_OPTIONS, dtype=(dtype,), verify=False)
        sections = compile(checkpoint, tmp_path / f"{dtype}.so", options).metadata["weight_sections"]
        bytes_of[dtype] = {row["level"]: row["bytes"] for row in sections}
    for level in (0, 1):
        assert (
            bytes_of["int8"][level] < 0.6 * bytes_of["float32"][level]
        )  # these matrices are small: tables weigh a lot


def test_a_decoder_computes_few_tokens_with_the_same_weights(tmp_path):
    """Each call is checked, and a length more costs no weights."""
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
    decoder, built = prune(tiny("GPT2LMHeadModel", **sizes), PruneOptions((0.5,))), {}
    for lengths in ((32,), (1, 4, 32)):
        options = CompileOptions("rk3588", cluster="big0", lengths=lengths, cache=False, dtype=("int8",))
        options = options if len(lengths) > 1 else replace(options, verify=False)
        built[len(lengths)] = compile(decoder, tmp_path / "m.so", options).metadata
    sizes = [{s["level"]: s["bytes"] for s in built[n]["weight_sections"] if s["level"] >= 0} for n in (1, 3)]
    assert sizes[0] == sizes[1] and set(sizes[0]) == {0}
    families = {k["family"] for k in built[3]["kernels"]}
    assert families >= {"few_token_linear_int8", "pattern_linear_int8", "quantise"}
    symbols = " ".join(k["symbol"] for k in built[3]["kernels"])
    assert {"few_token_linear_i8_v4_r4_t1_", "pattern_linear_i8_v4_r4x1_t4_"} <= set(
        re.findall(r"\w+_t\d+_(?=k\d)", symbols)
    )
    proven = {(row["level"], row["length"]): row for row in built[3]["verified"]["int8"]}
    assert set(proven) == {(0, length) for length in (1, 4, 32)}
    assert all(row["exact_calls"] and row["exact_error"] < 2e-6 for row in proven.values())


def test_it_runs_here(checkpoint, tmp_path):
    """On whatever this machine multiplies int8 by, against PyTorch with its layers quantised."""
    path = tmp_path / "m.so"
    here = CompileOptions(lengths=(24,), cache=False, dtype=("int8",))
    try:
        metadata = compile(checkpoint, path, here).metadata
    except Rt3Error as error:
        pytest.skip(f"this machine has no int8: {error}")
    model = checkpoint.dense_model()
    checkpoint.mask(model, 0)
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (1, 24))
    with torch.inference_mode():
        dense = model(torch.from_numpy(ids)).last_hidden_state.numpy()
        quantise_layers(
            model, {name for name, m in metadata["matrices"].items() if m["levels"][0].get("dtype") == "int8"}
        )
        wanted = model(torch.from_numpy(ids)).last_hidden_state.numpy()
    with load(path) as bundle:
        got = bundle(input_ids=ids)["last_hidden_state"]
    # Rounding here and there goes another way, and moves what is behind it: less than quantising itself does.
    assert rms_error(got, wanted) < 0.7 * rms_error(dense, wanted) or rms_error(got, wanted) < 1e-5


def quantise_layers(model, names):
    """Give layers of a PyTorch model fake quantisation, of weights by row and of what they read by token."""

    def of_tokens(_layer, args):
        flat = args[0].reshape(-1, args[0].shape[-1])
        scales = flat.abs().amax(1) / 127
        return torch.fake_quantize_per_channel_affine(flat, scales, zeros(scales), 0, -127, 127).reshape(args[0].shape)

    def zeros(scales):
        return torch.zeros_like(scales, dtype=torch.int32)

    for name in names:
        layer = model.get_submodule(name.removesuffix(".weight"))
        scales = layer.weight.abs().amax(1) / 127
        quantised = torch.fake_quantize_per_channel_affine(layer.weight, scales, zeros(scales), 0, -127, 127)
        layer.weight.copy_(quantised)
        layer.register_forward_pre_hook(of_tokens)


def spoil(monkeypatch, family, change):
    """Make all kernels of a family write other values."""
    row = SCHEDULES[family]

    def schedule(func, cpu):
        func = row.schedule(func, cpu)
        outputs = func.params[-2:] if family == "quantise" else func.params[-1:]

        def wrong(store):
            if not any(store.buffer.same_as(o) for o in outputs):
                return store
            return tirx.BufferStore(store.buffer, change(store.value), store.indices)

        return func.with_body(tvm_ffi.structural_map(func.body, (tirx.BufferStore, wrong)))

    monkeypatch.setitem(SCHEDULES, family, replace(row, schedule=schedule))


def times(factor):
    def change(value):
        dtype = str(value.ty.dtype)
        if not dtype.startswith("float32"):
            return value
        lanes = int(value.ty.dtype.lanes)
        number = tirx.const(factor, "float32")
        return value * (tirx.Broadcast(number, lanes) if lanes > 1 else number)

    return change


def flipped(value):
    """Flip the lowest bit of each step."""
    dtype = str(value.ty.dtype)
    return (
        value ^ tirx.Broadcast(tirx.const(1, "int8"), int(value.ty.dtype.lanes)) if dtype.startswith("int8") else value
    )


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("quantise", flipped, r"level 0, length 9: quantise\w* is off by 1\.\d+ steps, 0.5 is rounding \(full mask, "),
        ("quantise", times(1.001), r"quantise\w*: its scale is off by 0.001 of its size, 1e-05 is rounding"),
        (
            "pattern_linear_int8",
            times(1.001),
            r"pattern_linear_i8\w* of 'encoder.layer.0.attention.self.query.weight': its result is off by 0.001 of",
        ),
        (
            "attention_float16",
            times(1.01),
            r"level 0, length 9: attention_float16: its result is off by 0.01 of its size, 0.00098 is rounding \(full mask, ",
        ),
        ("layer_norm", times(1.01), "first to differ is rt3.layer_norm"),
    ],
)
def test_a_wrong_kernel_is_named_and_leaves_no_file(checkpoint, tmp_path, monkeypatch, family, change, message):
    """Also one that is off by less than int8 itself is."""
    spoil(monkeypatch, family, change)
    with pytest.raises(JobError, match=f"the compiled model is wrong: [^\n]*{message}[^\n]*$"):
        compile(checkpoint, tmp_path / "m.so", A76_OPTIONS)
    assert not list(tmp_path.iterdir())


def test_a_model_that_int8_is_too_coarse_for_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(TOLERANCES, "int8", 1e-4)
    message = (
        r"^int8 is too coarse for this model: level 0, [^\n]* leave some out by keep_float, or choose another dtype$"
    )
    with pytest.raises(JobError, match=message):
        compile(checkpoint, tmp_path / "m.so", A76_OPTIONS)
    assert not list(tmp_path.iterdir())


def test_a_model_whose_scores_float16_does_not_bear_is_refused(checkpoint, tmp_path):
    """Or keeps its attention in float32."""
    sharp = replace(checkpoint, weights=sharpened(checkpoint.weights, 150.0))
    options = replace(A76_OPTIONS, lengths=(40,))
    message = (
        r"^float16 is too coarse for attention of this model: level 0, length 40: attention_float16: rounding moves its result "
        r"by 0\.\d+ of its size, 0.0078 is borne \(full mask, .*\); leave it out by keep_float attention, or choose another "
        "dtype$"
    )
    with pytest.raises(JobError, match=message):
        compile(sharp, tmp_path / "m.so", options)
    huge = replace(checkpoint, weights=sharpened(checkpoint.weights, 1e4))
    with pytest.raises(JobError, match=r"numbers or scores are beyond what float16 holds, 65504 \(full mask"):
        compile(huge, tmp_path / "m.so", options)
    assert not list(tmp_path.iterdir())
    made = compile(checkpoint, tmp_path / "m.so", replace(options, keep_float=("attention",))).metadata
    families = {kernel["family"] for kernel in made["kernels"]}
    assert "attention" in families and "attention_float16" not in families
    assert all("rounded_calls" not in row for row in made["verified"]["int8"])


def sharpened(weights, factor):
    """Return weights whose queries and keys are larger."""
    return {n: w * np.float32(factor) if "query" in n or "key" in n else w for n, w in weights.items()}


def test_the_command_line(tiny_checkpoint, tmp_path, capsys):
    tiny_checkpoint.save(tmp_path / "m.ckpt")
    arguments = [
        "compile",
        str(tmp_path / "m.ckpt"),
        "-o",
        str(tmp_path / "m.so"),
        "--seq-len",
        "16",
        "--dtype",
        "float32,int8",
    ]
    assert main([*arguments, "--device", "rk3588", "--cluster", "big0"]) == 2
    assert "--dtype float32,int8: give one, or one for each of the checkpoint's 3 levels" in capsys.readouterr().err


def test_kernels_name_their_family(imported, checkpoint):
    mod = lowered(imported, checkpoint, element=INT8)
    families = {str(f.attrs[KERNEL_ATTR]) for _, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}
    assert families >= {"quantise", "attention_float16", "layer_norm"}
    assert families & {"pattern_linear_int8", "dense_linear_int8"}


def test_layers_that_multiply_constant_positions_prove_themselves(tmp_path):
    """XLNet's projection of its positions is quantised at run time, from weights; its weights have three axes."""
    options = PruneOptions((0.5,), shape=PatternShape(4, 32, 4, 4), order_columns=True)
    report = compile(
        prune(xlnet(), options), tmp_path / "m.so", CompileOptions(lengths=(16,), cache=False, dtype=("int8",))
    )
    (proof,) = report.metadata["verified"]["int8"]
    assert proof["exact_calls"] > 2 * 7 and not report.metadata["unmatched"]
