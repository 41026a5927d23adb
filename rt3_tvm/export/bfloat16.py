"""Values that a model rounds to bfloat16 (Falcon's position bias): float32 in the exported graph, rounded where it rounds."""

import torch

ATEN = torch.ops.aten
ARITHMETIC = (ATEN.add.Tensor, ATEN.sub.Tensor, ATEN.mul.Tensor, ATEN.div.Tensor, ATEN.neg.default)
"""Operators that PyTorch computes in float32, each result rounded."""

MOVES = (
    *(ATEN.view.default, ATEN.reshape.default, ATEN.expand.default, ATEN.permute.default, ATEN.transpose.int),
    *(ATEN.unsqueeze.default, ATEN.squeeze.dims, ATEN.slice.Tensor, ATEN.select.int, ATEN.clone.default),
)
"""Operators that take a tensor first and change no value."""


def rewrite_bfloat16(module: torch.fx.GraphModule) -> None:
    """Replace bfloat16 tensors by float32 ones of the same values; what is computed in another way stays."""
    rewriter = _Rewriter(module)
    for node in list(module.graph.nodes):
        rewriter.visit(node)
    module.graph.eliminate_dead_code()
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, value in list(module.named_buffers(recurse=False)):
        if value.dtype == torch.bfloat16 and name not in read:
            delattr(module, name)
    module.recompile()


class _Rewriter:
    def __init__(self, module: torch.fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self.wide: dict[torch.fx.Node, torch.fx.Node] = {}  # float32, by what was bfloat16

    def visit(self, node: torch.fx.Node) -> None:
        source = node.args[0] if node.args else None
        if node.op == "get_attr" and _dtype(node) == torch.bfloat16:
            self.wide[node] = self.constant(node)
        elif node.target is ATEN._assert_tensor_metadata.default and source in self.wide:
            self.graph.erase_node(node)
        elif node.target is ATEN._to_copy.default and source in self.wide:
            with self.graph.inserting_before(node):
                node.replace_all_uses_with(self.cast(self.wide[source], node.kwargs["dtype"]))  # type: ignore
        elif _dtype(node) == torch.bfloat16:
            with self.graph.inserting_before(node):
                self.widen(node)

    def constant(self, node: torch.fx.Node) -> torch.fx.Node:
        name = f"rt3_wide_{str(node.target).replace('.', '_')}"
        self.module.register_buffer(name, node.meta["val"].to(torch.float32))
        with self.graph.inserting_after(node):
            return self.graph.get_attr(name)

    def widen(self, node: torch.fx.Node) -> None:
        """Compute what a node gives as float32."""
        source = node.args[0] if node.args else None
        if node.target is ATEN._to_copy.default and isinstance(source, torch.fx.Node):
            self.wide[node] = self.rounded(source)
        elif node.target in ARITHMETIC:
            terms = [self.wide.get(a) or self.rounded(a) if isinstance(a, torch.fx.Node) else a for a in node.args]
            self.wide[node] = self.rounded(self.graph.call_function(node.target, tuple(terms), node.kwargs))
        elif node.target in MOVES and isinstance(source, torch.fx.Node) and source in self.wide:
            self.wide[node] = self.graph.call_function(node.target, (self.wide[source], *node.args[1:]), node.kwargs)

    def rounded(self, x: torch.fx.Node) -> torch.fx.Node:
        """Return numbers of any type as float32 ones that bfloat16 holds."""
        return self.cast(self.cast(self.cast(x, torch.float32), torch.bfloat16), torch.float32)

    def cast(self, x: torch.fx.Node, dtype: torch.dtype) -> torch.fx.Node:
        return self.graph.call_function(ATEN._to_copy.default, (x,), {"dtype": dtype})


def _dtype(node: torch.fx.Node) -> torch.dtype | None:
    return getattr(node.meta.get("val"), "dtype", None)


def only_rounds(node: torch.fx.Node) -> bool:
    """Return whether a bfloat16 tensor is what :func:`rewrite_bfloat16` leaves: a cast, and back to float32."""
    back = all(u.target is ATEN._to_copy.default and u.kwargs.get("dtype") == torch.float32 for u in node.users)
    return node.target is ATEN._to_copy.default and back and _dtype(node) == torch.bfloat16
