"""What models spell out in the exported graph that other operators say: products with a transposed weight, Fourier mixing."""

import math

import torch

from rt3_tvm.model import PRESENT

ATEN = torch.ops.aten
_REAL_PART, _TRANSPOSES = 0, (ATEN.permute.default, ATEN.t.default, ATEN.transpose.int)


def rewrite_spelt_out(module: torch.fx.GraphModule) -> None:
    """Replace `x @ weight.T` by a linear layer, and the real part of a Fourier transform by products with constants."""
    for node in list(module.graph.nodes):
        if node.target is ATEN.matmul.default:
            _linear(module, node)
        elif node.target is ATEN.select.int:
            _fourier(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _linear(module: torch.fx.GraphModule, node: torch.fx.Node) -> None:
    """Rewrite a product with a transposed parameter (Falcon's linear layers); a bias that is added stays an addition."""
    x, transposed = node.args
    assert isinstance(x, torch.fx.Node) and isinstance(transposed, torch.fx.Node)
    if transposed.target not in _TRANSPOSES or x.meta["val"].ndim not in (2, 3):
        return
    weight = transposed.args[0]
    assert isinstance(weight, torch.fx.Node)
    if weight.op != "get_attr" or weight.meta["val"].ndim != 2 or not _is_parameter(module, str(weight.target)):
        return
    node.target, node.args = ATEN.linear.default, (x, weight)


def _is_parameter(module: torch.nn.Module, path: str) -> bool:
    *parents, name = path.split(".")
    for parent in parents:
        module = getattr(module, parent)
    return isinstance(getattr(module, name), torch.nn.Parameter)


def _fourier(module: torch.fx.GraphModule, node: torch.fx.Node) -> None:
    """Rewrite the real part of a transform of a real (batch, length, features) along both (FNet's mixing).

    With X the tokens, C the cosines and S the sines of a transform, it is C X C - S X S.
    """
    chain = [node]
    for target in (ATEN.view_as_real.default, ATEN._fft_c2c.default, ATEN._to_copy.default):
        source = chain[-1].args[0]
        if not isinstance(source, torch.fx.Node) or source.target is not target:
            return
        chain.append(source)
    _, view, transform, complex_ = chain
    x = complex_.args[0]
    assert isinstance(x, torch.fx.Node)
    _, axes, normalised, forward = transform.args
    shape = x.meta["val"].shape
    if (list(axes), normalised, forward) != ([1, 2], 0, True) or len(shape) != 3:  # type: ignore[arg-type]
        return
    if node.args[1:] != (view.meta["val"].ndim - 1, _REAL_PART):
        return
    with module.graph.inserting_before(node):
        products = []
        for wave in WAVES:
            along_length, along_features = (_matrix(module, wave, n) for n in shape[1:])
            mixed = module.graph.call_function(ATEN.matmul.default, (x, along_features))
            products.append(module.graph.call_function(ATEN.matmul.default, (along_length, mixed)))
        result = module.graph.call_function(ATEN.sub.Tensor, tuple(products))
    result.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(result)


WAVES = {"cosine": torch.cos, "sine": torch.sin}


def _matrix(module: torch.fx.GraphModule, wave: str, size: int) -> torch.fx.Node:
    """Return the constant (size, size) matrix of a transform's cosines or sines."""
    name = f"rt3_fourier_{wave}_{size}"
    if not hasattr(module, name):
        steps = torch.arange(size, dtype=torch.float64)
        turns = torch.outer(steps, steps) % size  # exact, where a large angle is not
        module.register_buffer(name, WAVES[wave](2 * math.pi / size * turns).to(torch.float32))
    found = module.graph.get_attr(name)
    found.meta["val"] = getattr(module, name)
    return found


def take_last_present(module: torch.fx.GraphModule) -> None:
    """Where a graph has the input ``PRESENT``, make the last token of (batch, length, features) the last one present."""
    present = next((n for n in module.graph.nodes if n.op == "placeholder" and n.target == PRESENT.name), None)
    if present is None:
        return
    batch_and_length = tuple(present.meta["val"].shape)
    for node in list(module.graph.nodes):
        if node.target is not ATEN.select.int:
            continue
        x, axis, index = node.args
        shape = tuple(x.meta["val"].shape)
        if len(shape) == 3 and shape[:2] == batch_and_length and axis == 1 and index in (-1, shape[1] - 1):
            _sum_over_tokens(module, node, x, present)
    module.recompile()


def _sum_over_tokens(
    module: torch.fx.GraphModule, node: torch.fx.Node, x: torch.fx.Node, present: torch.fx.Node
) -> None:
    """Replace the last of the tokens by the sum of all, weighted by 1 for the last present and 0 for the others."""
    graph, length = module.graph, present.meta["val"].shape[1]
    if not hasattr(module, "rt3_counts"):
        module.register_buffer("rt3_counts", torch.arange(1, length + 1))
    with graph.inserting_before(node):
        count = graph.call_function(ATEN.sum.dim_IntList, (present, [1], True))
        last = graph.call_function(ATEN.eq.Tensor, (graph.get_attr("rt3_counts"), count))
        weight = graph.call_function(ATEN._to_copy.default, (last,), {"dtype": torch.float32})
        column = graph.call_function(ATEN.unsqueeze.default, (weight, 2))
        weighted = graph.call_function(ATEN.mul.Tensor, (x, column))
        result = graph.call_function(ATEN.sum.dim_IntList, (weighted, [1]))
    result.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(result)
    graph.erase_node(node)
