"""Complex numbers in the exported graph, as some models rotate by positions: products of pairs of real ones."""

from typing import Any

import torch

ATEN = torch.ops.aten


def rewrite_complex(module: torch.fx.GraphModule) -> None:
    """Replace complex constants, views of real tensors and their products by real tensors (..., 2); others stay."""
    pairs: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in list(module.graph.nodes):
        sources = node.all_input_nodes
        if node.op == "get_attr" and _value(module, node).is_complex():
            pairs[node] = _constant(module, node)
        elif node.target is ATEN.view_as_complex.default:
            pairs[node] = sources[0]
        elif node.target is ATEN.mul.Tensor and all(a in pairs for a in node.args):
            pairs[node] = _product(module.graph, node, *(pairs[a] for a in node.args))
        elif node.target is ATEN.view_as_real.default and sources[0] in pairs:
            node.replace_all_uses_with(pairs[sources[0]])
        elif node.target is ATEN._assert_tensor_metadata.default and sources[0] in pairs:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, value in list(module.named_buffers(recurse=False)):
        if value.is_complex() and name not in read:
            delattr(module, name)
    module.recompile()


def _value(module: torch.nn.Module, node: torch.fx.Node) -> torch.Tensor:
    for name in str(node.target).split("."):
        module = getattr(module, name)
    assert isinstance(module, torch.Tensor)
    return module


def _constant(module: torch.fx.GraphModule, node: torch.fx.Node) -> torch.fx.Node:
    name = f"rt3_pairs_{str(node.target).replace('.', '_')}"
    module.register_buffer(name, torch.view_as_real(_value(module, node)).contiguous())
    with module.graph.inserting_after(node):
        return module.graph.get_attr(name)


def _product(graph: torch.fx.Graph, node: torch.fx.Node, left: torch.fx.Node, right: torch.fx.Node) -> torch.fx.Node:
    """Return the pairs of a product: (a + bi)(c + di) = (ac - bd) + (ad + bc)i."""

    def call(target: torch._ops.OpOverload, *args: Any) -> torch.fx.Node:
        return graph.call_function(target, args)

    with graph.inserting_before(node):
        (a, b), (c, d) = ([call(ATEN.select.int, pair, -1, i) for i in (0, 1)] for pair in (left, right))
        products = [call(ATEN.mul.Tensor, *factors) for factors in ((a, c), (b, d), (a, d), (b, c))]
        real, imaginary = call(ATEN.sub.Tensor, *products[:2]), call(ATEN.add.Tensor, *products[2:])
        return call(ATEN.stack.default, [real, imaginary], -1)
