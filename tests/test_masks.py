"""The masks of models in the exported graph: constants apart from what the caller says of its tokens."""

import pytest
import torch
import transformers

from rt3_tvm.export import export
from rt3_tvm.export.masks import MASK_VALUE

TINY = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LENGTH, BATCH = 12, 2


def bert():
    return transformers.BertModel(transformers.BertConfig(**TINY))


def mistral(window):
    config = transformers.MistralConfig(**TINY, num_key_value_heads=2, sliding_window=window)
    return transformers.MistralModel(config)


def masks_of(model):
    """Return the additive mask of each attention, as (constant part or None, rest or None), and the program."""
    program = export(model.eval(), BATCH, LENGTH)
    names = program.graph_signature.inputs_to_buffers
    found = []
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
            parts = mask.args if mask.target is torch.ops.aten.minimum.default else (mask,)
            constants = [
                program.state_dict.get(names[p.name], program.constants.get(names[p.name]))
                for p in parts
                if p.name in names
            ]
            found.append((constants[0] if constants else None, [p for p in parts if p.name not in names]))
    return found


def test_an_encoder_adds_a_row_of_keys_and_nothing_else():
    masks = masks_of(bert())
    assert len(masks) == 2
    for constant, rest in masks:
        assert constant is None
        assert [tuple(p.meta["val"].shape) for p in rest] == [(BATCH, 1, 1, LENGTH)]


@pytest.mark.parametrize("window", [None, 4])
def test_a_decoder_keeps_its_triangle_and_its_window_as_a_constant(window):
    q, k = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    seen = (k <= q) & (q - k < (window or LENGTH))
    masks = masks_of(mistral(window))
    assert len(masks) == 2
    for constant, rest in masks:
        torch.testing.assert_close(constant[0, 0], torch.where(seen, 0.0, MASK_VALUE))
        assert [tuple(p.meta["val"].shape) for p in rest] == [(BATCH, 1, 1, LENGTH)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_exported_graph_gives_what_the_model_gives(attention, side):
    torch.manual_seed(0)
    model = mistral(4).eval()
    model.set_attn_implementation(attention)
    ids = torch.randint(0, 50, (BATCH, LENGTH))
    mask = torch.ones_like(ids)
    mask[0, slice(None, 3) if side == "left" else slice(-3, None)] = 0
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask)["last_hidden_state"]
        got = export(model, BATCH, LENGTH).module()(input_ids=ids, attention_mask=mask)["last_hidden_state"]
    real = mask.bool()
    torch.testing.assert_close(got[real], want[real], atol=1e-5, rtol=1e-5)
