"""The search space, the reward and the ways to propose children, counted and computed by hand."""

import json
import math
import random
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch

from rt3_tvm.energy.latency import MatrixLoad, Rt3Latency, TableLatency, TableRow
from rt3_tvm.energy.power import PowerState
from rt3_tvm.errors import Rt3Error
from rt3_tvm.export import LinearLayer
from rt3_tvm.pattern import EACH_BLOCK, PatternRecipe, PatternShape, cut_backbone
from rt3_tvm.search.controller import Controller, Policy
from rt3_tvm.search.journal import Journal
from rt3_tvm.search.options import ControllerOptions, RewardOptions, SearchOptions
from rt3_tvm.search.reward import Reward
from rt3_tvm.search.space import Choice, Space, recipes_of
from rt3_tvm.search.store import Store
from rt3_tvm.search.strategies import POPULATION, Evolution, RandomSearch

FREQUENCIES = (1.4e9, 1.0e9, 0.8e9)
GRID = (0.25, 0.5, 0.75, 0.9)


def space_of(deadline=0.0, latency=None, groups=(1, 2), grid=GRID, candidates=1):
    import numpy as np

    layers = tuple(LinearLayer(n, (32, 64)) for n in ("a", "b"))
    weights = {n: np.random.default_rng(i).standard_normal((32, 64)).astype(np.float32) for i, n in enumerate("ab")}
    backbones = {n: cut_backbone(w, 0.5, 32) for n, w in weights.items()}
    recipes = tuple(
        PatternRecipe(PatternShape(v, 32, v), 4, "maps", at_most=True, seed=c)
        for v in groups
        for c in range(candidates)
    )
    space = Space(
        layers,
        backbones,
        (recipes, recipes),
        grid,
        frozenset(),
        (MatrixLoad(32, 32),),
        latency or Rt3Latency(),
        FREQUENCIES,
        deadline,
    )
    return space, weights


def table(group_factor):
    """Return a table in which groups of 1 take longer by a factor."""
    rows = [TableRow(0, 0, 0, 1.0, 1e9, 1e-4, 0.0), TableRow(32, 32, 0, 1.0, 1e9, 1e-4, 0.0)]
    for density in (0.01, 1.0):
        rows += [
            TableRow(32, 64, v, density, 1e9, (group_factor if v == 1 else 1.0) * density * 1e-3, 0.0) for v in (1, 2)
        ]
    rows.append(TableRow(32, 64, 0, 1.0, 1e9, 1.0, 0.0))
    return TableLatency("core", 1, 1, tuple(rows))


def test_sizes_without_a_deadline():
    space, _ = space_of()
    assert space.size == space.shrunk_size == math.comb(4, 3) * 2 ** (2 * 3)
    assert set(space.ladders) == set(combinations(range(4), 3))


def latency_by_hand(space, choice):
    found = []
    for hz, s, sets in zip(FREQUENCIES, choice.sparsity, choice.sets, strict=True):
        seconds = (1e-4 + 1e-4) * 1e9 / hz
        for r in sets:
            kept = math.floor(32 * (1 - GRID[s]) + 1e-9) / 64  # half of 64 columns is left, blocks of 32
            factor = 3.0 if space.recipes[0][r].shape.group == 1 else 1.0
            seconds += factor * kept * 1e-3 * 1e9 / hz
        found.append(seconds)
    return tuple(found)


def test_the_deadline_rules_out_what_cannot_be_in_time():
    deadline = 1.0e-3
    space, _ = space_of(deadline, table(3.0))
    children = [
        Choice(ladder, tuple(tuple(x[2 * i : 2 * i + 2]) for i in range(3)))
        for ladder in combinations(range(4), 3)
        for x in product(range(2), repeat=6)
    ]
    assert len(children) == space.size
    in_time = []
    for child in children:
        by_hand = latency_by_hand(space, child)
        assert space.latencies(child) == pytest.approx(by_hand)
        if all(s <= deadline for s in by_hand):
            in_time.append(child)
    left = [
        Choice(ladder, tuple(tuple(level) for level in sets))
        for ladder in space.ladders
        for sets in product(*(product(*level) for level in space.options(ladder)))
    ]
    assert len(left) == space.shrunk_size < space.size
    assert in_time
    assert {c.key for c in in_time} <= {c.key for c in left}  # nothing that is in time was ruled out
    # what is left at a level can be in time with the fastest of the other matrix
    for level, by_sparsity in enumerate(space.allowed):
        for s, allowed in enumerate(by_sparsity):
            for m in range(2) if allowed else ():
                for r in allowed[m]:
                    sets = [1, 1]
                    sets[m] = r
                    assert space.seconds(level, s, sets) <= deadline


def test_a_deadline_that_nothing_meets_says_the_nearest():
    space, _ = space_of(1e-6, table(3.0))
    nearest = 1e3 * space.seconds(0, 3, (1, 1))
    with pytest.raises(
        Rt3Error, match=f"deadline 0.001 ms at 1.4GHz: no sparsity meets it: the nearest is {nearest:.4g} ms"
    ):
        space.check()


def test_too_few_sparsities_for_the_levels():
    space, _ = space_of(1.0, grid=(0.5, 0.6))
    with pytest.raises(Rt3Error, match="fewer sparsities meet it than there are levels"):
        space.check()


def test_levels_are_cut_as_chosen_within_the_backbone():
    space, weights = space_of()
    levels = space.cut(Choice((0, 1, 3), ((0, 1), (1, 0), (0, 0))), weights)
    assert [lv.frequency_hz for lv in levels] == list(FREQUENCIES)
    for level, s, sets in zip(levels, (0, 1, 3), ((0, 1), (1, 0), (0, 0)), strict=True):
        assert level.sparsity == pytest.approx(1 - 0.5 * (1 - GRID[s]))
        for name, r in zip("ab", sets, strict=True):
            matrix = level.matrices[name]
            assert matrix.patterns.shape.group == r + 1
            assert not (matrix.mask() & ~space.backbones[name].mask()).any()
            assert matrix.density <= 0.5 * (1 - GRID[s]) + 1e-9
    halfway = space.cut(Choice((0, 1, 3), ((0, 0),) * 3), weights, part=0.5)
    assert halfway[2].density == pytest.approx(0.5 * math.floor(32 * 0.55) / 32)


def test_keys_come_back():
    choice = Choice((0, 2, 3), ((0, 1), (1, 1), (0, 0)))
    assert Choice.from_key(choice.key) == choice
    assert json.loads(choice.key) == [[0, 2, 3], [[0, 1], [1, 1], [0, 0]]]


STATES = tuple(PowerState(hz, w) for hz, w in zip(FREQUENCIES, (0.2153, 0.1137, 0.0788), strict=True))


def test_reward_is_rt3s():
    """By hand, with RT3's constants: its BP + DVFS row, 114.6 / 160.4 / 200.5 ms, is 1.866 million runs."""
    options = RewardOptions(0.85, 0.9745, 2.3e6, 2.2e6)
    reward = Reward(0.85, 0.9745, (0.5, 0.3, 0.2), 2.3e6, 2.2e6, options, STATES)
    runs = reward.runs((0.1146, 0.1604, 0.2005))
    assert runs == pytest.approx(1.866e6, rel=1e-3)
    accuracy = 0.5 * 0.96 + 0.3 * 0.95 + 0.2 * 0.94
    expected = (accuracy - 0.85) / (0.9745 - 0.85) + (runs - 2.3e6) / 2.2e6
    assert reward(runs, (0.96, 0.95, 0.94)) == pytest.approx(expected)
    assert reward(runs, (0.95, 0.95, 0.94)) == pytest.approx(
        (0.5 * 0.95 + 0.3 * 0.95 + 0.2 * 0.94 - 0.85) / 0.1245 + (runs - 2.3e6) / 2.2e6 - 0.5
    )
    assert reward.missed(runs) == pytest.approx(-1 + (runs - 2.3e6) / 2.2e6)
    without = Reward(0.85, 0.9745, (0.5, 0.3, 0.2), 1.0, 1.0, options)
    assert without.missed(without.runs((1.0, 1.0, 1.0))) == -1.0


def test_probabilities_of_the_policy_sum_to_one():
    space, _ = space_of(grid=(0.3, 0.5, 0.7, 0.9), groups=(1,), candidates=2)
    torch.manual_seed(0)
    policy = Policy(space, 8)
    total = 0.0
    with torch.no_grad():
        for ladder in space.ladders:
            for sets in product(*(product(*level) for level in space.options(ladder))):
                total += float(policy.score(Choice(ladder, tuple(sets)))[0].exp())
    assert total == pytest.approx(1.0, abs=1e-4)


def target_reward(child):
    """A reward that prefers group 2 everywhere and one ladder."""
    return sum(r for level in child.sets for r in level) / 6 + (child.sparsity == (0, 1, 3))


@pytest.mark.parametrize("strategy", [Controller, Evolution])
def test_learning_beats_random_on_a_known_reward(strategy):
    space, _ = space_of()
    late = []
    for make in (
        lambda: RandomSearch(space, 0),
        lambda: strategy(space, *([ControllerOptions()] if strategy is Controller else []), 0),
    ):
        found = make()
        rewards = []
        for _ in range(60):
            children = found.propose(5)
            rewards += [target_reward(c) for c in children]
            found.learn(children, rewards[-5:])
        late.append(sum(rewards[-50:]) / 50)
    assert late[1] > late[0] + 0.4


def test_proposals_follow_from_the_seed():
    space, _ = space_of()
    for make in (
        lambda s: RandomSearch(space, s),
        lambda s: Evolution(space, s),
        lambda s: Controller(space, ControllerOptions(), s),
    ):
        assert [c.key for c in make(1).propose(8)] == [c.key for c in make(1).propose(8)]
        assert [c.key for c in make(1).propose(8)] != [c.key for c in make(2).propose(8)]


def test_proposals_are_always_in_what_the_deadline_left():
    space, _ = space_of(1.0e-3, table(3.0))
    evolution = Evolution(space, 0)
    rng = random.Random(0)
    for strategy in (evolution, RandomSearch(space, 0), Controller(space, ControllerOptions(), 0)):
        for _ in range(POPULATION // 2):
            children = strategy.propose(5)
            strategy.learn(children, [rng.random() for _ in children])
            for child in children:
                assert child.sparsity in space.ladders
                for sets, allowed in zip(child.sets, space.options(child.sparsity), strict=True):
                    assert all(r in o for r, o in zip(sets, allowed, strict=True))


def test_one_pattern_a_block_leaves_one_set_to_choose():
    layers = [LinearLayer("a", (64, 64))]
    options = SearchOptions("lm", "odroid-xu3", deadline_s=1.0, patterns=EACH_BLOCK, groups=(1, 4), candidates=3)
    assert [len(recipes_of(layers, replace(options, pattern=p))[0]) for p in ("maps", "random")] == [2, 6]


def test_the_journal_drops_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "deep" / "journal.jsonl"
    journal = Journal.open(path, {"seed": 1})
    journal.add({"kind": "child", "child": "x"})
    journal.add({"kind": "episode", "number": 0})
    whole = path.read_bytes()
    for end in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:end])
        Journal.read(path)  # as a report does, perhaps while the line is being written
        assert path.read_bytes() == whole[:end]
        found = Journal.open(path, {"seed": 1})
        assert len(found.records) == whole[:end].count(b"\n") - 1
        assert path.read_bytes() == whole[: whole[:end].rfind(b"\n") + 1]
        found.add({"kind": "episode", "number": 7})
        assert Journal.open(path, {"seed": 1}).records[-1]["number"] == 7


def test_the_journal_refuses_another_configuration_and_damage(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal.open(path, {"seed": 1, "rate": 0.1, "task": "lm"})
    with pytest.raises(Rt3Error, match=r"another configuration: rate was 0.1, is 0.2, seed was 1, is 2:"):
        Journal.open(path, {"seed": 2, "rate": 0.2, "task": "lm"})
    with path.open("a") as file:
        file.write('{"kind": "child"\n{"kind": "episode"}\n')
    with pytest.raises(Rt3Error, match=r"journal.jsonl:2: damaged"):
        Journal.open(path, {"seed": 1, "rate": 0.1, "task": "lm"})
    path.write_text("hello\n")
    with pytest.raises(Rt3Error, match=r"journal.jsonl:1: damaged"):
        Journal.read(path)
    path.write_text("{}\n")
    with pytest.raises(Rt3Error, match=r"no journal of rt3 search"):
        Journal.read(path)


def test_states_are_whole_or_not_there(tmp_path):
    store = Store(tmp_path)
    assert store.read("dense") is None
    store.save("dense", {"w": torch.arange(4.0)}, {"loss": [1.5]})
    tensors, facts = store.read("dense")
    assert torch.equal(tensors["w"], torch.arange(4.0))
    assert facts == {"loss": [1.5]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense.safetensors"]
    path = store.path("dense")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(Rt3Error, match=r"dense.safetensors' is damaged .*restart"):
        store.read("dense")


BAD = [
    ({"deadline_s": 0.0, "sparsity": None}, "give deadline_s, or sparsity"),
    ({"sparsity": (0.8, 0.7, 0.9)}, "sparsity 0.8,0.7,0.9: give them ascending"),
    ({"sparsity": (0.5, 0.6), "frequencies": (2e9, 1e9, 5e8)}, "2 levels for 3 frequencies"),
    ({"frequencies": (1e9, 2e9, 3e9)}, "from the highest to the lowest"),
    ({"level_weights": (1.0, 1.0)}, "level_weights 1,1: give one above 0 for each of 3 levels"),
    ({"block": "magic"}, "block magic: choose from gradual, lasso, one-shot, random"),
    ({"pattern": "magic"}, "pattern magic: choose from magnitude, maps, random"),
    ({"search": "magic"}, "search magic: choose from evolution, none, random, rl"),
    ({"precision": "half"}, "precision half: choose from bfloat16, float32"),
    ({"grid": (0.5, 0.4, 0.9)}, "grid 0.5,0.4,0.9: give them ascending"),
    ({"grid": (0.5, 0.6), "sparsity": None, "deadline_s": 1.0}, "3 levels need as many sparsities"),
    ({"block_rows": 10, "groups": (4,)}, "block_rows 10 must be a multiple of the group 4"),
    ({"epochs": (1, 1)}, "epochs takes four numbers"),
    ({"distillation": 1.5}, "distillation 1.5 is outside"),
    ({"rate": -1.0}, "rate -1 is outside"),
    ({"children": 0}, "children and episode_batch at least 1"),
    ({"threads": 0}, "threads, tokens"),
    ({"block_sparsity": 1.0}, r"block_sparsity 1: each must be in \[0, 1\)"),
    ({"reward": RewardOptions(shares=(0.5, 0.4, 0.2))}, "they must sum to 100 %"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[m[:25] for _, m in BAD])
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(Rt3Error, match=message):
        SearchOptions(**({"task": "lm", "device": "odroid-xu3", "sparsity": (0.5, 0.6, 0.7)} | options))
