"""Products that models write with einsum, in the exported graph: what they are, and that they say the same."""

import pytest
import torch
import transformers

from rt3_tvm.export import LinearLayer, export, find_linears, linears_in
from rt3_tvm.export.einsum import Labels

ATEN = torch.ops.aten
CONFIG = transformers.BertConfig(vocab_size=50, hidden_size=32)


class Model(transformers.PreTrainedModel):
    """An einsum of what tokens look up and of a weight, or of two such tensors."""

    config_class = transformers.BertConfig

    def __init__(self, equation, weight):
        super().__init__(CONFIG)
        torch.manual_seed(0)
        self.equation = equation
        self.words = torch.nn.Embedding(50, 32)
        self.weight = torch.nn.Parameter(torch.randn(weight)) if weight else None

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask=None):
        x = self.words(input_ids) + attention_mask[..., None]
        left = self.equation.partition(",")[0]
        x = x.reshape(*x.shape[:2], 4, 8) if len(left) == 4 else x
        return {"y": torch.einsum(self.equation, x, x * 2 if self.weight is None else self.weight)}


def exported(model):
    """Return the program of a model at (2, 5), its operators, and how far its output is from the model's."""
    program = export(model.eval(), 2, 5)
    ids = torch.arange(10).reshape(2, 5)
    with torch.no_grad():
        want = model(ids, torch.ones(2, 5, dtype=torch.int64))["y"]
        got = program.module()(input_ids=ids, attention_mask=torch.ones(2, 5, dtype=torch.int64))["y"]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    return program, [node.target for node in program.graph.nodes]


@pytest.mark.parametrize(
    ("equation", "weight", "layer"),
    [
        ("ibh,hnd->ibnd", (32, 4, 8), LinearLayer("weight", (32, 32), True)),
        ("ibh,hnd->bnid", (32, 4, 8), LinearLayer("weight", (32, 32), True)),
        ("ibnd,hnd->ibh", (24, 4, 8), LinearLayer("weight", (24, 32))),
        ("ibh,ch->ibc", (24, 32), LinearLayer("weight", (24, 32))),
        ("ibh,hc->ibc", (32, 24), LinearLayer("weight", (24, 32), True)),
    ],
)
def test_a_product_with_one_weight_is_a_linear_layer(equation, weight, layer):
    program, operators = exported(Model(equation, weight))
    assert linears_in(program) == [layer]
    assert not {ATEN.bmm.default, ATEN.einsum.default} & {*operators}


@pytest.mark.parametrize(
    ("equation", "weight"),
    [
        ("bih,hbd->bid", (32, 2, 8)),  # a weight for each sequence
        ("bind,dnh->bih", (8, 4, 6)),  # its first axis is half of one side
        ("ibh,hnd->ibnd", (1, 4, 8)),  # its only row is repeated
    ],
)
def test_what_is_not_one_matrix_is_no_layer(equation, weight):
    program, _ = exported(Model(equation, weight))
    assert linears_in(program) == []


@pytest.mark.parametrize("equation", ["bind,bjnd->bnij", "ibnd,jbnd->bnij", "bind,bjnd->ijbn"])
def test_products_of_heads_keep_four_axes(equation):
    program, operators = exported(Model(equation, ()))
    assert linears_in(program) == []
    assert ATEN.matmul.default in operators and ATEN.bmm.default not in operators


@pytest.mark.parametrize("equation", ["bii,bij->bj", "bi,bj", "...i,ij->...j", "bij->bji", "bi,bj,bk->ijk", "bi,j->b"])
def test_other_equations_are_left_to_pytorch(equation):
    assert Labels.of(equation) is None


def test_every_projection_of_xlnet_is_a_layer():
    config = transformers.XLNetConfig(vocab_size=50, d_model=32, n_layer=1, n_head=4, d_inner=64)
    layers = {layer.name: layer for layer in find_linears(transformers.XLNetModel(config).eval())}
    for name in "qkvr":
        assert layers[f"layer.0.rel_attn.{name}"].transposed
    assert not layers["layer.0.rel_attn.o"].transposed
    assert {layers[f"layer.0.rel_attn.{name}"].shape for name in "qkvor"} == {(32, 32)}
    assert len(layers) == 7
