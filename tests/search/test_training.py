"""Training under masks, against plain PyTorch written out by hand."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch

from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.export import LinearLayer, find_linears
from rt3_tvm.pattern import PatternRecipe, PatternShape, cut_backbone, cut_patterns, most_kept
from rt3_tvm.search.block_pruning import Blocks, GroupLasso, cut_backbones, ratios_of
from rt3_tvm.search.phases import risen, whole
from rt3_tvm.search.row_grouping import find_free_rows, group_rows, similar_order
from rt3_tvm.search.training import MaskedModel, Trainer, TrainOptions, masks_of
from rt3_tvm.tasks import load_task


@pytest.fixture(scope="module")
def tiny():
    return load_task("lm", None, "random-lm-tiny")


def blocks_of(rows, adjacent=1):
    return Blocks(rows, PatternShape(1, 16, 1, adjacent))


def masks_at(model, names, density):
    found = {}
    for name in names:
        w = model.get_parameter(name).detach().numpy()
        recipe = PatternRecipe(PatternShape(4, 16, 1), 8)
        found[name] = cut_patterns(w, cut_backbone(w, 0.0, w.shape[0]), recipe, density)
    return masks_of(found)


NAMES = ("encoder.layers.0.linear1.weight", "decoder.weight")


def by_hand(model, data, batch, masks, weights):
    """Return the gradients of all levels' losses, each model masked by hand."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for weight, level in zip(weights, masks, strict=True):
        masked = copy.deepcopy(model).eval()
        with torch.no_grad():
            for name, mask in level.items():
                masked.get_parameter(name).mul_(mask)
        logits = masked(input_ids=batch["ids"][:, :-1])["logits"]
        loss = -torch.log_softmax(logits, -1).gather(-1, batch["ids"][:, 1:, None]).mean()
        loss.backward()
        for name, p in masked.named_parameters():
            gradient = p.grad * level[name] if name in level else p.grad
            total[name] += weight * gradient
    return total


@pytest.mark.parametrize("masked_gradients", [True, False])
def test_gradients_of_all_levels_are_summed(tiny, masked_gradients):
    model, data = copy.deepcopy(tiny[0]), tiny[1]
    batch = {"ids": next(data.batches("train"))["ids"][:4]}
    masks = [masks_at(model, NAMES, d) for d in (0.5, 0.25)]
    expected = by_hand(model, data, batch, masks, (0.6, 0.4))
    if not masked_gradients:  # as if every weight were kept, with the masked value
        whole_masks = [{n: torch.ones_like(m) for n, m in level.items()} for level in masks]
        expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for weight, level in zip((0.6, 0.4), masks, strict=True):
            masked = copy.deepcopy(model)
            with torch.no_grad():
                for name, mask in level.items():
                    masked.get_parameter(name).mul_(mask)
            part = by_hand(masked, data, batch, [whole_masks[0]], (weight,))
            expected = {n: expected[n] + part[n] for n in expected}
    for weight, level in zip((0.6, 0.4), masks, strict=True):
        forward = MaskedModel(model, level, masked_gradients)
        (weight * data.loss(data.predict(forward, batch), batch)).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, expected[name], atol=1e-6), name


def test_what_no_level_keeps_is_not_trained(tiny):
    model, data = copy.deepcopy(tiny[0]), tiny[1]
    masks = masks_at(model, NAMES, 0.25)
    before = {n: model.get_parameter(n).detach().clone() for n in NAMES}
    trainer = Trainer(model, data, TrainOptions(1e-3, distillation=0.0), 3, 0)
    trainer.optimizer.param_groups[0]["weight_decay"] = 0.0
    trainer.epoch(0, [(1.0, masks)], most=3)
    for name in NAMES:
        moved = model.get_parameter(name).detach() != before[name]
        assert moved.any()
        assert not (moved & (masks[name] == 0)).any()


def test_a_resumed_phase_is_the_same_as_one_that_was_not_interrupted(tiny):
    data = tiny[1]
    options = TrainOptions(1e-3, distillation=0.0)
    one = copy.deepcopy(tiny[0])
    trainer = Trainer(one, data, options, 6, 5)
    for number in range(2):
        trainer.epoch(number, [(1.0, {})], most=3)
        if number == 0:
            weights, state = copy.deepcopy(one.state_dict()), {k: v.clone() for k, v in trainer.state().items()}
    other = copy.deepcopy(tiny[0])
    other.load_state_dict(weights)
    resumed = Trainer(other, data, options, 6, 5)
    resumed.restore(state)
    resumed.epoch(1, [(1.0, {})], most=3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_learning_rate_rises_then_falls_to_zero(tiny):
    trainer = Trainer(tiny[0], tiny[1], TrainOptions(1.0), 100, 0)
    rates = []
    for trainer.done in range(100):
        rates.append(trainer.rate)
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] == pytest.approx(1 / 90)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_a_loss_that_diverges_stops_with_the_weights_before(tiny):
    model, data = copy.deepcopy(tiny[0]), tiny[1]
    before = copy.deepcopy(model.state_dict())
    calls = iter(range(100))

    def penalty(m):
        return m.decoder.bias.sum() * (float("nan") if next(calls) == 2 else 0.0)

    trainer = Trainer(model, data, TrainOptions(1e-3, distillation=0.0), 5, 0)
    with pytest.raises(JobError, match=r"the loss diverged after 2 batches of epoch 1$"):
        trainer.epoch(0, [(1.0, {})], penalty, most=5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_distillation_pulls_towards_the_teacher(tiny):
    teacher, data = tiny
    model = copy.deepcopy(teacher)
    with torch.no_grad():
        model.decoder.weight.mul_(0.5)
    batch = next(data.batches("valid"))

    def divergence():
        with torch.no_grad():
            student, taught = (
                torch.log_softmax(m(input_ids=batch["ids"][:, :-1])["logits"], -1) for m in (model, teacher)
            )
        return float((taught.exp() * (taught - student)).sum(-1).mean())

    first = divergence()
    with torch.no_grad():
        found = data.distillation(data.predict(model, batch), data.predict(teacher, batch))
    assert float(found) == pytest.approx(first, rel=1e-4)
    trainer = Trainer(model, data, TrainOptions(2e-3, distillation=1.0, dropout=False), 20, 0, teacher)
    trainer.epoch(0, [(1.0, {})], most=20)
    assert divergence() < 0.7 * first


def test_group_lasso_is_the_sum_of_weighted_norms():
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 5, bias=False)
    lasso = GroupLasso([LinearLayer("weight", (5, 6))], blocks_of(2), 0.1)
    lasso.reweight(model)
    w = model.weight.detach().double().numpy()
    norms = np.array([np.sqrt((w[r : r + 2] ** 2).sum(0)) for r in (0, 2, 4)])
    weights = norms.mean() / (norms + 1e-3 * norms.mean())
    assert float(lasso(model).detach()) == pytest.approx(0.1 * (weights * norms).sum(), rel=1e-5)
    with torch.no_grad():
        model.weight.mul_(2.0)  # the weights of groups stay until they are reweighted
    assert float(lasso(model).detach()) == pytest.approx(0.2 * (weights * norms).sum(), rel=1e-5)


def test_group_lasso_of_quads_draws_four_columns_together():
    torch.manual_seed(0)
    layers = [LinearLayer("weight", (5, 8)), LinearLayer("other", (5, 6))]
    model = torch.nn.Module()
    model.weight, model.other = (torch.nn.Parameter(torch.randn(5, n)) for n in (8, 6))
    lasso = GroupLasso(layers, blocks_of(5, 4), 0.1)
    lasso.reweight(model)
    for name, together in (("weight", 4), ("other", 1)):  # 6 columns are no whole quads
        w = model.get_parameter(name).detach().double().numpy()
        norms = np.sqrt((w**2).sum(0).reshape(-1, together).sum(1))
        wanted = norms.mean() / (norms + 1e-3 * norms.mean())
        np.testing.assert_allclose(lasso.weights[name].numpy()[0], wanted, rtol=1e-5)


def test_backbones_keep_the_columns_of_the_largest_norm():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((10, 8)).astype(np.float32)
    layer = LinearLayer("w", (10, 8))
    backbone = cut_backbones([layer], {"w": w}, {"w": 0.5}, blocks_of(4))["w"]
    mask = whole({"w": backbone})["w"].numpy()
    for start in (0, 4, 8):
        norms = (w[start : start + 4] ** 2).sum(0)
        kept = set(np.argsort(-norms)[:4])
        assert all((mask[start : start + 4, c] == (c in kept)).all() for c in range(8))
    transposed = LinearLayer("w", (10, 8), transposed=True)
    turned = cut_backbones([transposed], {"w": w.T.copy()}, {"w": 0.5}, blocks_of(4))
    assert (whole(turned)["w"].numpy() == mask.T).all()
    halfway = cut_backbones([layer], {"w": w}, {"w": 0.5}, blocks_of(4), part=0.5)["w"]
    assert halfway.columns.shape[1] == 6
    at_random = cut_backbones([layer], {"w": w}, {"w": 0.5}, blocks_of(4), seed=1)["w"]
    assert at_random.columns.shape == backbone.columns.shape
    assert (at_random.columns != backbone.columns).any()


class Heads(torch.nn.Module):
    """A projection whose weight is (features, heads, head size), or (heads, .., features) of one from heads."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return torch.einsum("th,hnd->tnd", x, self.weight)


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_of_three_axes_are_pruned_as_matrices(transposed):
    torch.manual_seed(0)
    model = Heads(torch.randn(8, 2, 5))
    shape = (10, 8) if transposed else (8, 10)
    layer, flat = LinearLayer("weight", shape, transposed), model.weight.detach().reshape(8, 10).numpy()
    matrix = flat.T if transposed else flat
    backbone = cut_backbones([layer], {"weight": model.weight.detach().numpy()}, {"weight": 0.5}, blocks_of(4))[
        "weight"
    ]
    same = cut_backbones([LinearLayer("w", shape)], {"w": matrix}, {"w": 0.5}, blocks_of(4))["w"]
    assert (backbone.columns == same.columns).all()
    kept = same.mask().T if transposed else same.mask()
    x = torch.randn(3, 8)
    want = x @ (model.weight.detach().reshape(8, 10) * torch.from_numpy(kept))
    got = MaskedModel(model, whole({"weight": backbone}))(x=x)
    torch.testing.assert_close(got.detach().reshape(3, 10), want)
    plain = torch.nn.Linear(*shape[::-1], bias=False)
    with torch.no_grad():
        plain.weight.copy_(torch.from_numpy(matrix.copy()))
    losses = []
    for module, own in ((model, layer), (plain, LinearLayer("weight", shape))):
        lasso = GroupLasso([own], blocks_of(2), 0.1)
        lasso.reweight(module)
        losses.append(float(lasso(module).detach()))
    assert losses[0] == pytest.approx(losses[1])


def test_ratios_by_glob():
    layers = [LinearLayer(n, (8, 8)) for n in ("a.query.weight", "a.value.weight", "b.query.weight")]
    found = ratios_of(layers, 0.5, [("*.query.weight", 0.2), ("b.*", 0.1)])
    assert found == {"a.query.weight": 0.2, "a.value.weight": 0.5, "b.query.weight": 0.1}
    with pytest.raises(Rt3Error, match=r"block_sparsity_of c.\*=0.3: no matrix has such a name: a.query.weight"):
        ratios_of(layers, 0.5, [("c.*", 0.3)])


def test_sparsity_rises_to_its_end():
    parts = [risen(n, 4) for n in range(6)]
    assert parts == pytest.approx([1 - 0.75**3, 1 - 0.5**3, 1 - 0.25**3, 1, 1, 1])
    assert risen(0, 1) == 1.0


@pytest.mark.parametrize("density", [0.36, 0.26, 0.2, 0.11])
@pytest.mark.parametrize("start", ["blocks", "maps", "random"])
def test_recipes_are_never_denser_than_asked(density, start):
    w = np.random.default_rng(0).standard_normal((24, 100)).astype(np.float32)
    backbone = cut_backbone(w, 0.1, 24)
    recipe = PatternRecipe(PatternShape(2, 32, 2), 6, start, at_most=True)
    matrix = cut_patterns(w, backbone, recipe, density)
    most = most_kept(backbone, recipe, density)
    assert matrix.density <= most + 1e-12 <= 0.9 * density + 1e-9
    assert most == pytest.approx(0.9 * density, abs=3 / 100)


def test_as_many_patterns_as_blocks_keep_the_best_of_each():
    w = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
    matrix = cut_patterns(w, cut_backbone(w, 0.0, 8), PatternRecipe(PatternShape(1, 16, 1), 1000), 0.25)
    blocks = np.abs(w).reshape(8, 2, 16)
    kept = np.sort(blocks, axis=2)[..., -4:]
    assert np.abs(w[matrix.mask()]).sum() == pytest.approx(kept.sum(), rel=1e-6)
    assert matrix.density == 0.25


def test_magnitude_beats_maps_beats_random():
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    backbone = cut_backbone(w, 0.0, 64)

    def kept(start, refinements):
        recipe = PatternRecipe(PatternShape(4, 16, 1), 4, start, refinements)
        return (w[cut_patterns(w, backbone, recipe, 0.5).mask()] ** 2).sum()

    assert kept("random", 0) < kept("maps", 0) < kept("maps", 6)


def test_grouping_rows_leaves_the_function_alone(tiny):
    model = copy.deepcopy(tiny[0]).eval()
    ids = tiny[1].splits["train"][:2, :35]
    with torch.no_grad():
        before = model(input_ids=ids)["logits"]
        names = {layer.name for layer in find_linears(model)}
        weight = model.get_parameter("encoder.layers.0.linear1.weight").clone()
        assert group_rows(model, names) == 2
        after = model(input_ids=ids)["logits"]
    assert not torch.equal(weight, model.get_parameter("encoder.layers.0.linear1.weight"))
    assert torch.allclose(before, after, atol=1e-5)
    free = find_free_rows(model)
    assert [f.follower for f in free] == [f"encoder.layers.{i}.linear2.weight" for i in range(2)]


def test_similar_rows_come_together_and_lose_less():
    rng = np.random.default_rng(0)
    kinds = rng.random((4, 64)) < 0.3
    w = (rng.standard_normal((64, 64)) * (0.05 + kinds[np.arange(64) % 4])).astype(np.float32)
    order = similar_order(w)
    assert sorted(order) == list(range(64))

    def kept(matrix):
        recipe = PatternRecipe(PatternShape(4, 16, 4), 64)
        mask = cut_patterns(matrix, cut_backbone(matrix, 0.0, 64), recipe, 0.25).mask()
        return (matrix[mask] ** 2).sum() / (matrix**2).sum()

    assert kept(w[order]) > 1.2 * kept(w)
