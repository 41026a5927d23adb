"""The masks that models make of a two-dimensional one, taken apart in the exported graph.

A model says which keys a query sees with one boolean tensor (batch, 1, queries, keys): what is constant (a triangle, a
window) and what the caller says of its tokens, joined by `and`. Added to scores, `and` is a minimum, so the two are kept
apart: the constant part stays a constant, which the compiler looks at, and the caller's is a row of keys.
"""

from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch

MASK_VALUE = float(torch.finfo(torch.float32).min)
"""What is added to the score of a key that is not seen: finite, so that a query that sees none stays finite."""

ATEN = torch.ops.aten
_AND = (ATEN.bitwise_and.Tensor, ATEN.logical_and.default, ATEN.mul.Tensor)
_ATTENTION = ATEN.scaled_dot_product_attention.default


def separate_masks(module: torch.fx.GraphModule) -> None:
    """Replace every boolean mask of attention, and every `where(mask, 0, lowest)`, by a minimum of additive parts."""
    rewriter = _Rewriter(module)
    for node in list(module.graph.nodes):
        if node.target is _ATTENTION:
            rewriter.attention(node)
        elif node.target is ATEN.where.self:
            rewriter.spelt_out(node)
    module.graph.eliminate_dead_code()
    module.recompile()


@dataclass
class _Rewriter:
    module: torch.fx.GraphModule
    additive: dict[torch.fx.Node, torch.fx.Node | None] = field(default_factory=dict)
    buffers: int = 0

    def attention(self, node: torch.fx.Node) -> None:
        """Give one attention an additive mask; none where it sees everything."""
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        arguments = dict(zip(names, node.args, strict=False)) | node.kwargs
        mask = arguments.get("attn_mask")
        if not is_boolean(mask):
            return
        arguments["attn_mask"] = self.parts(mask)
        node.args = tuple(arguments.pop(name) for name in names[:3])
        node.kwargs = arguments

    def spelt_out(self, node: torch.fx.Node) -> None:
        """Take apart a mask that the model makes additive by itself, as attention without a fused operator does."""
        condition, seen, hidden = node.args
        assert isinstance(condition, torch.fx.Node)
        if condition.meta["val"].ndim != 4 or not (self.is_all(seen, 0.0) and self.is_all(hidden, MASK_VALUE)):
            return
        parts = self.parts(condition)
        if parts is None:
            return
        with self.module.graph.inserting_before(node):
            whole = self.module.graph.call_function(ATEN.expand.default, (parts, list(node.meta["val"].shape)))
        whole.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(whole)

    def is_all(self, value: object, number: float) -> bool:
        """Return whether an argument is a constant of one number."""
        found = self.constant(value)
        return found is not None and bool((found == number).all())

    def constant(self, value: object) -> torch.Tensor | None:
        """Return the value of a buffer of the graph; parameters are none."""
        if not isinstance(value, torch.fx.Node) or value.op != "get_attr":
            return None
        found = self.module
        for name in str(value.target).split("."):
            found = getattr(found, name)
        return None if isinstance(found, torch.nn.Parameter) else found  # type: ignore[return-value]

    def parts(self, mask: torch.fx.Node) -> torch.fx.Node | None:
        """Return a boolean mask as an additive one that broadcasts; None where it hides nothing."""
        if mask not in self.additive:
            self.additive[mask] = self._parts(mask)
        return self.additive[mask]

    def _parts(self, mask: torch.fx.Node) -> torch.fx.Node | None:
        value = self.constant(mask)
        if value is not None:
            return None if bool(value.all()) else self.buffer(mask, additive_mask(value))
        if mask.target is ATEN.expand.default and mask.args[0].meta["val"].ndim == mask.meta["val"].ndim:  # type: ignore
            return self.parts(mask.args[0])  # type: ignore[arg-type]
        if mask.target in _AND and all(is_boolean(a) for a in mask.args):
            parts = filter(None, (self.parts(a) for a in mask.args))  # type: ignore[arg-type]
            both = sorted(parts, key=lambda part: self.constant(part) is not None)  # constants last
            return self.call(mask, ATEN.minimum.default, *both) if len(both) > 1 else next(iter(both), None)
        if mask.target is ATEN.index.Tensor and self.selects_everything(mask):
            mask = self.view(mask, mask.args[0])  # type: ignore[arg-type]
        seen, hidden = (self.buffer(mask, torch.tensor(v)) for v in (0.0, MASK_VALUE))
        return self.call(mask, ATEN.where.self, mask, seen, hidden)

    def selects_everything(self, index: torch.fx.Node) -> bool:
        """Return whether an index reads a whole tensor in order: its result is the tensor in another shape."""
        source, indices = index.args[:2]
        assert isinstance(source, torch.fx.Node) and isinstance(indices, list | tuple)
        values = [self.constant(i) for i in indices]
        shape = source.meta["val"].shape
        if any(v is None for v in values) or len(values) != len(shape):
            return False
        everything = torch.arange(shape.numel())
        return torch.equal(everything.reshape(shape)[tuple(values)].reshape(-1), everything)

    def view(self, like: torch.fx.Node, source: torch.fx.Node) -> torch.fx.Node:
        """Return a tensor in the shape of another."""
        return self.call(like, ATEN.reshape.default, source, list(like.meta["val"].shape))

    def call(self, after: torch.fx.Node, target: torch._ops.OpOverload, *args: Any) -> torch.fx.Node:
        """Insert a call behind a node and behind its arguments."""
        graph = self.module.graph
        position = {node: i for i, node in enumerate(graph.nodes)}
        nodes = [a for a in args if isinstance(a, torch.fx.Node)]
        with graph.inserting_after(max([after, *nodes], key=lambda n: position[n])):
            node = graph.call_function(target, args)
        with torch.device("meta"):
            shapes = [torch.empty(a.meta["val"].shape, dtype=a.meta["val"].dtype) for a in nodes]
        node.meta["val"] = target(*shapes, *args[len(nodes) :])
        return node

    def buffer(self, after: torch.fx.Node, value: torch.Tensor) -> torch.fx.Node:
        """Insert a constant behind a node."""
        name = f"rt3_mask_{self.buffers}"
        self.buffers += 1
        self.module.register_buffer(name, value)
        with self.module.graph.inserting_after(after):
            node = self.module.graph.get_attr(name)
        node.meta["val"] = value
        return node


def is_boolean(value: object) -> TypeGuard[torch.fx.Node]:
    """Return whether an argument of a node is a boolean tensor."""
    return isinstance(value, torch.fx.Node) and value.meta["val"].dtype == torch.bool


def additive_mask(seen: torch.Tensor) -> torch.Tensor:
    """Return what is added to scores for a boolean mask: 0 where a key is seen."""
    return torch.where(seen, 0.0, MASK_VALUE)
