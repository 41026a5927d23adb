"""Exporting models: the form and the graph that the compiler sees, and which of a model's matrices are linear layers.

Linear layers are found in the exported graph, never by the names of modules.
"""

import inspect
from collections.abc import Container, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch

from rt3_tvm.errors import Rt3Error
from rt3_tvm.export.bfloat16 import rewrite_bfloat16
from rt3_tvm.export.complex_numbers import rewrite_complex
from rt3_tvm.export.decompositions import DECOMPOSITIONS
from rt3_tvm.export.einsum import spell_out_einsum
from rt3_tvm.export.experts import experts_unrolled
from rt3_tvm.export.masks import separate_masks
from rt3_tvm.export.spelt_out import rewrite_spelt_out, take_last_present
from rt3_tvm.model import (
    PRESENT,
    Axis,
    InputSpec,
    OutputSpec,
    config_of,
    example_inputs,
    has_length,
    inputs_of,
    max_length,
    quiet,
)


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer found in the graph: the name of its weight and its (rows, cols), outputs by inputs.

    ``transposed``: the weight is stored as (cols, rows), as GPT-2 does. ``reads``: what the graph calls its input; layers that
    read one tensor have the same.
    """

    name: str
    shape: tuple[int, int]
    transposed: bool = False
    reads: str = field(default="", compare=False)


def _run(model: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Run a model; one that cannot take such inputs is one line."""
    try:
        return dict(model(**inputs).items())
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        shapes = ", ".join(f"{n} {tuple(v.shape)}" for n, v in inputs.items() if isinstance(v, torch.Tensor))
        raise Rt3Error(f"{type(model).__name__} fails on {shapes}: {type(error).__name__} {reason}".rstrip()) from error


class ExportForm(torch.nn.Module):
    """The model as it is exported: the call of a user, without a cache; a dict of tensors goes out.

    The model makes its own masks from the two-dimensional one, so that windows, left padding and positions that count real
    tokens stay what they are. With the input ``PRESENT``, tokens that only fill the compiled length are embedded as zeros.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        taken = inspect.signature(model.forward).parameters.values()
        cached = any(p.name == "use_cache" or p.kind is p.VAR_KEYWORD for p in taken)
        self.extra = {"use_cache": False} if cached and hasattr(config_of(model), "use_cache") else {}

    def forward(self, **inputs: torch.Tensor) -> dict[str, Any]:
        """Run the model on its inputs, see :func:`inputs_of`."""
        present = inputs.pop(PRESENT.name, None)
        with nullcontext() if present is None else _embedded_as_zeros(self.model, present == 0):
            result = _run(self.model, inputs | self.extra)
        return {k: v for k, v in result.items() if isinstance(v, torch.Tensor)}


@contextmanager
def _embedded_as_zeros(model: torch.nn.Module, absent: torch.Tensor) -> Iterator[None]:
    """Let the embedding of tokens give zeros for some of them."""

    def hook(_module: torch.nn.Module, _inputs: object, rows: torch.Tensor) -> torch.Tensor:
        return rows.masked_fill(absent[..., None], 0.0)

    handle = model.get_input_embeddings().register_forward_hook(hook)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


BATCHES, TOKENS = (2, 3), 16
"""Two small shapes to run: these batches, half as many tokens and as many; models that pool tokens or cut them into chunks need
more than a few."""


def outputs_of(model: torch.nn.Module, specs: tuple[InputSpec, ...]) -> tuple[OutputSpec, ...]:
    """Return the outputs; which axes are batch and length is seen by running two small shapes."""
    most = max(2, min(TOKENS, max_length(model)))
    lengths = most // 2, most
    kinds: dict[tuple[int, int], Axis] = {BATCHES: "batch", lengths: "length"}
    with torch.no_grad(), quiet():
        results = [ExportForm(model)(**example_inputs(specs, b, t)) for b, t in zip(BATCHES, lengths, strict=True)]
    varied = [
        f"batch {b}" + (f" of {t} tokens" if has_length(specs) else "") for b, t in zip(BATCHES, lengths, strict=True)
    ]
    specs_out = []
    for name in results[0]:
        first, second = (tuple(r[name].shape) for r in results)
        axes: list[Axis] = []
        for a, b in zip(first, second, strict=True):
            if a != b and (a, b) not in kinds:
                raise Rt3Error(
                    f"output '{name}': an axis of {a} for {varied[0]}, {b} for {varied[1]}: neither batch nor length"
                )
            axes.append(kinds.get((a, b), int(a)))
        specs_out.append(OutputSpec(name, tuple(axes)))
    return tuple(specs_out)


KEPT_WHOLE = (
    torch.ops.aten.linear.default,
    torch.ops.aten.matmul.default,
    torch.ops.aten.scaled_dot_product_attention.default,
)
"""Operators that export must not take apart."""

_RESHAPE = torch.ops.aten.reshape.default
"""What rewriting inserts; TVM takes it as it takes a view."""

FOLDED_ELEMENTS = 1 << 20
"""Largest constant that export computes ahead: positions, rotary angles, what a position bias looks up."""


def export(
    model: torch.nn.Module, batch: int, length: int, specs: tuple[InputSpec, ...] | None = None
) -> torch.export.ExportedProgram:
    """Export the model for one shape: core ATen but for KEPT_WHOLE, and what depends on no input computed already.

    ``specs``: the inputs of the graph, those of the model unless given; with ``PRESENT`` the last token is the last one present.
    """
    examples = example_inputs(specs or inputs_of(model), batch, length)
    with torch.no_grad(), quiet(), experts_unrolled(model):
        program = torch.export.export(ExportForm(model), (), examples)
        spelt_out = spell_out_einsum(program)
        module = _fold_constants(_decomposed(program, spelt_out).module())
        separate_masks(module)
        rewrite_spelt_out(module)
        take_last_present(module)
        rewrite_complex(module)
        rewrite_bfloat16(module)
        return _decomposed(torch.export.export(module, (), examples))


def _decomposed(program: torch.export.ExportedProgram, changed: bool = False) -> torch.export.ExportedProgram:
    """Return a program taken apart; ``changed``: it was rewritten, so that nodes must be traced to have values."""
    table = torch.export.default_decompositions()
    for operator in KEPT_WHOLE:
        table.pop(operator, None)
    for operator, decomposition in DECOMPOSITIONS.items():
        table[operator] = decomposition
    if changed or any(
        _is_to_be_taken_apart(node.target, table) for node in program.graph.nodes if node.op == "call_function"
    ):
        return program.run_decompositions(table)
    # A graph that was taken apart before: PyTorch would trace it twice more to see that there is nothing to do.
    program.graph.eliminate_dead_code()
    return program


def _is_to_be_taken_apart(operator: Any, table: Container[Any]) -> bool:
    """Return whether an operator is in a table of decompositions, or made of others by PyTorch itself."""
    if operator in table:
        return True
    if not isinstance(operator, torch._ops.OpOverload) or operator in KEPT_WHOLE or operator is _RESHAPE:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd")


def _fold_constants(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Replace what depends on no input by buffers. Parameters stay, but for rows that constant ids look up."""
    values: dict[torch.fx.Node, Any] = {}
    for node in module.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr":
            value = _attribute(module, str(node.target))
            node.meta.setdefault("val", value)
            if not isinstance(value, torch.nn.Parameter):
                values[node] = value
        elif node.op == "call_function" and (isinstance(node.target, torch._ops.OpOverload) or node.target is getitem):
            known = [s in values for s in sources]
            if node.target is torch.ops.aten.embedding.default and known == [False, True]:
                values |= (
                    {sources[0]: _attribute(module, str(sources[0].target))} if sources[0].op == "get_attr" else {}
                )
                known = [s in values for s in sources]
            if all(known):
                _fold_node(node, values)
    for i, (node, value) in enumerate(list(values.items())):
        constant = node.op == "call_function" and isinstance(value, torch.Tensor)
        if constant and any(user not in values for user in node.users):
            name = f"rt3_folded_{i}"
            module.register_buffer(name, value.detach().contiguous())
            with module.graph.inserting_before(node):
                folded = module.graph.get_attr(name)
            folded.meta["val"] = value
            node.replace_all_uses_with(folded)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _fold_node(node: torch.fx.Node, values: dict[torch.fx.Node, torch.Tensor]) -> None:
    """Compute a node whose inputs are known, if its result is tensors of moderate size."""
    assert callable(node.target)
    meta = node.meta.get("val")
    parts = meta if isinstance(meta, list | tuple) else [meta]
    if not all(isinstance(p, torch.Tensor) and p.numel() <= FOLDED_ELEMENTS for p in parts):
        return
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    values[node] = node.target(*args, **kwargs)


def _attribute(module: torch.nn.Module, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def parameter_names(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Return the model's name of each parameter and buffer that the graph takes, by placeholder."""
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {placeholder: name.removeprefix("model.") for placeholder, name in held.items()}


def embeddings_in(program: torch.export.ExportedProgram) -> list[LinearLayer]:
    """Return the tables that token ids look up rows of, (vocabulary, features); tables of positions are none."""
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
    """Return the linear layers of a model, in the order in which they run."""
    return linears_in(export(model, 1, 8))


def linears_in(program: torch.export.ExportedProgram) -> list[LinearLayer]:
    """Return the linear layers of a graph, in the order in which they run."""
    names = parameter_names(program)
    parameters = program.graph_signature.inputs_to_parameters
    found: dict[str, LinearLayer] = {}
    for node in program.graph.nodes:
        position = LINEAR_OPERATORS.get(node.target) if node.op == "call_function" else None
        if position is None and _multiplies_tokens(node):
            position = 1
        if position is None:
            continue
        matrix, transposed = node.args[position], node.target is not torch.ops.aten.linear.default
        weight = _viewed(matrix)
        # A constant that tokens are multiplied by is a buffer, and no weight.
        held = parameters if node.target is torch.ops.aten.matmul.default or weight is not matrix else names
        if weight.name in held:
            rows, cols = (int(d) for d in matrix.meta["val"].shape[:: -1 if transposed else 1])
            reads = _source(node.args[position - 1]).name
            found[names[weight.name]] = LinearLayer(names[weight.name], (rows, cols), transposed, reads)
    return list(found.values())


def _multiplies_tokens(node: torch.fx.Node) -> bool:
    """Return whether a node is a product of tokens, (tokens, features) with a batch or not, and one matrix, (features, rows)."""
    if node.target is not torch.ops.aten.matmul.default:
        return False
    x, matrix = (a.meta["val"] for a in node.args)  # type: ignore[union-attr]
    return x.ndim in (2, 3) and matrix.ndim == 2


def _viewed(node: torch.fx.Node) -> torch.fx.Node:
    """Return what a matrix is a view of: a weight of more axes, whose first one is one of its sides."""
    if node.target not in (torch.ops.aten.view.default, torch.ops.aten.reshape.default):
        return node
    source = node.args[0]
    assert isinstance(source, torch.fx.Node)
    first = source.meta["val"].shape[0] if source.meta["val"].ndim else 0
    return source if first in node.meta["val"].shape[:1] else node


RESHAPED = frozenset(
    {
        torch.ops.aten.view.default,
        torch.ops.aten.reshape.default,
        torch.ops.aten.alias.default,
        torch.ops.aten.clone.default,
    }
)


def _source(node: torch.fx.Node) -> torch.fx.Node:
    """Return the node whose numbers another one gives in other axes."""
    while node.target in RESHAPED:
        node = node.args[0]  # type: ignore[assignment]
    return node
