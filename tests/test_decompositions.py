"""What export spells out, against PyTorch's own: operators that order and place, experts, complex numbers, bfloat16."""

import pytest
import torch
import transformers

from rt3_tvm.export import export
from rt3_tvm.export.decompositions import DECOMPOSITIONS
from rt3_tvm.export.experts import experts_unrolled, routing

ATEN = torch.ops.aten
GENERATOR = torch.Generator().manual_seed(0)
FLOATS = torch.randn((3, 7, 5), generator=GENERATOR)
WITH_INFINITY = FLOATS.masked_fill(FLOATS > 1, float("-inf"))
INDEX = (
    torch.stack([torch.randperm(7, generator=GENERATOR)[:4] for _ in range(15)], 1).T.reshape(3, 5, 4).transpose(1, 2)
)
SOURCE = torch.randn((3, 4, 5), generator=GENERATOR)
TWICE = torch.tensor([[1, 1, 0], [2, 0, 2]])

CALLS = {
    "topk": (ATEN.topk.default, (FLOATS, 3), {}),
    "topk over the middle, smallest": (ATEN.topk.default, (FLOATS, 2, 1, False), {}),
    "topk of all": (ATEN.topk.default, (FLOATS, 7, 1), {}),
    "sort": (ATEN.sort.default, (FLOATS, 1), {}),
    "sort descending": (ATEN.sort.default, (FLOATS, -1, True), {}),
    "stable sort of ties": (ATEN.sort.stable, (TWICE,), {"stable": True}),
    "stable sort of ties, descending": (ATEN.sort.stable, (TWICE,), {"stable": True, "descending": True}),
    "largest": (ATEN.max.dim, (FLOATS, 1), {}),
    "largest, axis kept": (ATEN.max.dim, (FLOATS, -1, True), {}),
    "scatter": (ATEN.scatter.src, (WITH_INFINITY, 1, INDEX, SOURCE), {}),
    "scatter from part of a source": (ATEN.scatter.src, (FLOATS, 1, INDEX[:, :2], SOURCE), {}),
    "scatter a number": (ATEN.scatter.value, (FLOATS > 0, 1, INDEX, False), {}),
    "scatter a number twice": (ATEN.scatter.value, (torch.zeros(2, 3), 1, TWICE, 1), {}),
    "scatter and add": (ATEN.scatter_add.default, (torch.zeros(2, 3), 1, TWICE, torch.ones(2, 3)), {}),
    "full like": (ATEN.full_like.default, (FLOATS, -1.5), {}),
    "full like, of a type": (ATEN.full_like.default, (FLOATS, 2), {"dtype": torch.int64}),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_spelt_out_is_the_operator(name):
    operator, args, kwargs = CALLS[name]
    torch.testing.assert_close(
        DECOMPOSITIONS[operator](*args, **kwargs), _plain(operator(*args, **kwargs)), rtol=0, atol=0
    )


def _plain(result):
    return tuple(result) if isinstance(result, list | tuple) else result


def test_a_scatter_to_part_of_other_axes_is_left_alone():
    assert DECOMPOSITIONS[ATEN.scatter.src](FLOATS, 1, INDEX[:2], SOURCE) is NotImplemented


def test_an_index_past_the_last_expert_is_none_of_them():
    shares = routing(torch.tensor([[0, 2], [1, 3]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]]), 3)
    torch.testing.assert_close(shares, torch.tensor([[0.25, 0.0, 0.75], [0.0, 0.5, 0.0]]), rtol=0, atol=0)


SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
EXPERTS = {
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, intermediate_size=48, num_local_experts=4),
    "gpt-oss": lambda: transformers.GptOssConfig(  # interleaved gates, biases, weights stored the other way around
        **SMALL, intermediate_size=48, num_local_experts=4, num_experts_per_tok=2, head_dim=16
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_every_expert_gives_what_the_chosen_ones_give(name):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(EXPERTS[name]()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    experts = next(m for m in model.modules() if hasattr(m, "has_post_expert_norm"))
    x, weights = torch.randn(9, 32), torch.rand(9, 2)
    index = torch.stack([torch.randperm(4)[:2] for _ in range(9)])
    before = experts.config._experts_implementation
    with torch.no_grad():
        want = experts(x, index, weights)
        with experts_unrolled(model):
            got = experts(x, index, weights)
    assert experts.config._experts_implementation == before
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


class Rotated(torch.nn.Module):
    """A model that turns pairs of features by their position, in complex numbers."""

    def __init__(self):
        super().__init__()
        self.config = transformers.BertConfig(vocab_size=30)
        self.table = torch.nn.Embedding(30, 8)

    def forward(self, input_ids):
        x = self.table(input_ids)
        angles = torch.outer(torch.arange(x.shape[1]), 0.5 ** torch.arange(4)).float()
        turns = torch.polar(torch.ones_like(angles), angles)[None] * 1.5
        return {"y": torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * turns).flatten(2)}


class Rounded(torch.nn.Module):
    """A model that rounds what depends on its input to bfloat16, and computes there."""

    def __init__(self):
        super().__init__()
        self.config = transformers.BertConfig(vocab_size=3000)
        self.scale = torch.nn.Buffer(torch.rand(5))

    def forward(self, input_ids):
        whole = self.scale.bfloat16()[:, None] * input_ids[:, None, :]
        return {"y": (whole.transpose(1, 2) / 3 + whole.transpose(1, 2)[:, :1]).to(torch.float32)}


@pytest.mark.parametrize(("kind", "gone"), [(Rotated, torch.complex64), (Rounded, torch.bfloat16)])
def test_the_graph_is_of_real_float32_and_gives_the_same(kind, gone):
    torch.manual_seed(0)
    model = kind().eval()
    program = export(model, 2, 12)
    held = [n for n in program.graph.nodes if getattr(n.meta.get("val"), "dtype", None) == gone]
    assert all(n.target is ATEN._to_copy.default for n in held) and (bool(held) == (kind is Rounded))
    ids = torch.randint(0, model.config.vocab_size, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(
            program.module()(input_ids=ids)["y"], model(ids)["y"], rtol=0, atol=1e-6 if gone.is_complex else 0
        )
