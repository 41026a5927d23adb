"""``rt3 search``: from a dense model and a task to a checkpoint with a level for each frequency.

    dense training -> block pruning -> training of the backbone -> search space, shrunk by the deadline
        -> children, proposed and scored -> joint training of the best -> checkpoint

Everything between is in a folder beside the checkpoint: a journal, and the state of each phase. The test split is read at the end, once.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from rt3_tvm import __version__
from rt3_tvm import device as devices
from rt3_tvm import model as models
from rt3_tvm.checkpoint import Checkpoint, Level
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.export import LinearLayer, find_embeddings, find_linears
from rt3_tvm.hardware.energy import Power, PowerState, measured_power, modelled_power, published_power
from rt3_tvm.hardware.latency import MatrixLoad, latency_model, smallest_sparsity, source_for
from rt3_tvm.pattern import Backbone
from rt3_tvm.prune.one_shot import SMALLEST, tokenizer_files, why_dense
from rt3_tvm.search.block_pruning import cut_backbones, ratios_of
from rt3_tvm.search.children import ChildTrainer
from rt3_tvm.search.controller import Controller
from rt3_tvm.search.journal import Journal
from rt3_tvm.search.options import SearchOptions
from rt3_tvm.search.phases import Trained, prune_blocks, train_backbone, train_dense, train_levels
from rt3_tvm.search.progress import Progress, Silent
from rt3_tvm.search.reward import ACCURACY_MIN_OF_DENSE, Reward, runs_of
from rt3_tvm.search.row_grouping import group_rows
from rt3_tvm.search.space import Choice, Space, recipes_of
from rt3_tvm.search.store import Store, take
from rt3_tvm.search.strategies import Evolution, RandomSearch, Strategy
from rt3_tvm.search.training import masks_of, seed_of
from rt3_tvm.search.workers import open_workers
from rt3_tvm.tasks import TASKS, Dataset, load_task, read_sentences

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Found:
    """The checkpoint, and figures: of each phase, of the space, of the best child, of the levels on both splits."""

    checkpoint: Checkpoint
    figures: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What a search works with: the model and its data, the matrices, the device's frequencies and the power at them."""

    model: torch.nn.Module
    data: Dataset
    options: SearchOptions
    layers: tuple[LinearLayer, ...]
    skipped: dict[str, str]
    lookups: frozenset[str]
    frequencies: tuple[float, ...]
    states: tuple[PowerState, ...]
    source: Path | None
    sources: dict[str, str]


def folder_of(output: Path) -> Path:
    """Return the folder beside a checkpoint in which its search keeps everything."""
    return output.with_name(output.name + ".search")


def search(
    model_name: str,
    options: SearchOptions,
    output: Path,
    data: Path | None = None,
    progress: Progress | None = None,
    workers: str = "in-process",
    ray_address: str | None = None,
    restart: bool = False,
) -> Found:
    """Search and train, write the checkpoint, and return it. What was done before, by the same configuration, is not done again.

    Parameters
    ----------
    model_name
        As :func:`rt3_tvm.model.load` takes it.
    output
        Directory of the checkpoint; ``folder_of`` it has the journal.
    data
        Folder with the files of the task.
    workers, ray_address
        Who trains the children: a row of WORKERS, and for Ray the cluster's address. The result does not depend on it.
    restart
        Whether to throw away what an earlier search left.

    Raises
    ------
    Rt3Error
        Options that do not fit together, no sparsity that meets the deadline, or a journal of another configuration.
    JobError
        The loss diverged, or a file could not be written.
    """
    if output.exists() and not (output / "checkpoint.json").is_file():
        raise Rt3Error(f"'{output}' exists and is not a checkpoint: choose another -o")
    torch.set_num_threads(options.threads)
    progress = progress or Silent()
    setting = _setting(model_name, options, data)
    folder = folder_of(output)
    if restart:
        shutil.rmtree(folder, ignore_errors=True)
    journal = Journal.open(folder / JOURNAL, _configuration(model_name, setting))
    store = Store(folder)
    sentences = tuple(s for path in options.unlabelled for s in read_sentences(path))
    trained = Trained(setting.model, setting.data, options, store, progress, sentences)
    train_dense(trained)
    if options.group_rows:
        group_rows(setting.model, {layer.name for layer in setting.layers})
    ratios = _ratios(setting)
    backbones = prune_blocks(trained, setting.layers, ratios)
    train_backbone(trained, backbones)
    space = _space(setting, backbones)
    facts = _say_space(space, setting, progress)
    choice = _choose(trained, space, setting, journal, partial(open_workers, workers, address=ray_address), data)
    start = {n: v.clone() for n, v in setting.model.state_dict().items()}
    levels = train_levels(trained, "joint", partial(space.cut, choice), options.level_weights)
    found = _finish(trained, levels, setting, space, choice, journal, facts)
    if options.alone:
        _train_alone(trained, start, space, choice, found.figures)
    found.checkpoint.facts["figures"] = found.figures
    found.checkpoint.save(output)
    return found


def _setting(model_name: str, options: SearchOptions, data: Path | None) -> Setting:
    """Load everything and check that it fits together, before anything is trained."""
    device = devices.load(options.device)
    if options.cluster is not None:
        device = device.with_cluster(options.cluster)
    power = _power(device, options)
    frequencies = options.frequencies or _default_frequencies(device, power, options)
    states = _states(frequencies, power, device, options)
    model, dataset = load_task(options.task, data, model_name, options.seed)
    tables = find_embeddings(model) if options.embeddings else []
    found = [*find_linears(model), *tables]
    skipped = {layer.name: reason for layer in found if (reason := why_dense(layer, options.exclude))}
    layers = tuple(layer for layer in found if layer.name not in skipped)
    if not layers:
        raise Rt3Error("no linear layer is left to prune")
    latency = latency_model(options.latency, options.tokens)
    sources = {
        "latency": source_for(latency, device.cluster.core),
        "power": power.source if power else "not known: R_runs is left out",
    }
    lookups = frozenset(layer.name for layer in tables)
    source = models.source_directory(model_name)
    return Setting(model, dataset, options, layers, skipped, lookups, frequencies, states, source, sources)


def _power(device: devices.Device, options: SearchOptions) -> Power | None:
    """Return the power of the device; None where it does not matter or, without a search, is not known."""
    if options.reward.runs_weight == 0.0:
        return None
    if options.power == "published":
        return published_power(device, options.cores)
    if options.power is not None:
        return measured_power(Path(options.power), device.cluster, options.cores)
    try:
        return modelled_power(device.cluster, device.name, options.cores)
    except Rt3Error as error:
        if options.search == "none":
            return None
        raise Rt3Error(f"{error}; or leave energy out of the reward with --runs-weight 0") from error


def _default_frequencies(device: devices.Device, power: Power | None, options: SearchOptions) -> tuple[float, ...]:
    """Return as many frequencies as there are levels, of those whose power is known."""
    if power is None:
        return device.default_frequencies(options.levels)
    return devices.spread([s.hz for s in power.states], options.levels, device.name)


def _states(
    frequencies: tuple[float, ...], power: Power | None, device: devices.Device, options: SearchOptions
) -> tuple[PowerState, ...]:
    """Return the power at each frequency, every one an operating point."""
    if power is None:
        for hz in frequencies if device.cluster.opps else ():
            device.cluster.operating_point(hz, "--freqs")
        return ()
    known = {round(state.hz): state for state in power.states}
    for hz in frequencies:
        if round(hz) not in known:
            names = ", ".join(devices.frequency_name(s.hz) for s in power.states)
            raise Rt3Error(
                f"--freqs: '{device.name}' has no operating point with known power at {devices.frequency_name(hz)}: {names}"
            )
    return tuple(known[round(hz)] for hz in frequencies)


def _configuration(model_name: str, setting: Setting) -> dict[str, Any]:
    """Return everything that the result depends on."""
    digest = hashlib.sha256()
    for name, value in setting.model.state_dict().items():
        digest.update(name.encode() + value.detach().numpy().tobytes())
    files = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in setting.options.unlabelled if p.is_file()}
    if setting.options.latency != "rt3":
        files["latency"] = hashlib.sha256(Path(setting.options.latency).read_bytes()).hexdigest()
    return setting.options.to_json() | {
        "model": model_name,
        "weights": digest.hexdigest(),
        "data": setting.data.fingerprint(),
        "files": files,
        "frequencies_hz": list(setting.frequencies),
        "rt3_tvm": __version__,
        "torch": torch.__version__,
    }


def _ratios(setting: Setting) -> dict[str, float]:
    """Return the ratio of block pruning of each matrix."""
    o = setting.options
    if o.block_sparsity is not None:
        ratio = o.block_sparsity
    elif o.deadline_s:
        latency = latency_model(o.latency, o.tokens)
        loads = [MatrixLoad(*layer.shape, lookup=layer.name in setting.lookups) for layer in setting.layers]
        ratio = smallest_sparsity(latency, loads, setting.frequencies[0], o.deadline_s, min(o.groups))
    else:
        ratio = (o.sparsity or (0.0,))[0]
    return ratios_of(setting.layers, ratio, o.block_sparsity_of)


def _space(setting: Setting, backbones: dict[str, Backbone]) -> Space:
    """Return what can be chosen; a sparsity that was given, or that the deadline asks for without a search, is the only choice."""
    o = setting.options
    latency = latency_model(o.latency, o.tokens)
    shapes = {n: tuple(setting.model.get_parameter(n).shape) for n in setting.skipped}
    rest = tuple(MatrixLoad(s[0], s[1]) for s in shapes.values() if len(s) == 2 and min(s) >= SMALLEST)
    space = Space(
        setting.layers,
        backbones,
        recipes_of(setting.layers, o),
        o.grid,
        setting.lookups,
        rest,
        latency,
        setting.frequencies,
        o.deadline_s,
    )
    grid: tuple[float, ...] | None = None
    if o.sparsity is not None:
        grid = tuple(_within(s, space.backbone_density) for s in o.sparsity)
    elif o.search == "none":
        grid = _smallest(space, setting)
    if grid is not None:
        space = replace(space, grid=grid)
    space.check()
    return space


def _within(sparsity: float, backbone: float) -> float:
    """Return the sparsity within the backbone that makes a sparsity of the whole."""
    within = 1.0 - (1.0 - sparsity) / backbone
    if within < -0.005:
        raise Rt3Error(
            f"--sparsity {sparsity:g}: the backbone keeps only {backbone:.4f} of the weights: lower --block-sparsity"
        )
    return max(0.0, within)


def _smallest(space: Space, setting: Setting) -> tuple[float, ...]:
    """Return for each level the smallest sparsity within the backbone that meets the deadline."""
    o = setting.options
    loads = [
        MatrixLoad(*layer.shape, space.backbones[layer.name].density, space.recipes[m][0].shape.group)
        for m, layer in enumerate(setting.layers)
    ]
    found = []
    for hz in setting.frequencies:
        whole = sum(m.weights for m in loads)
        least = 1.0 - sum(m.weights * m.density for m in loads) / whole
        overall = smallest_sparsity(space.latency, [*loads], hz, o.deadline_s, min(o.groups), least)
        found.append(_within(overall, space.backbone_density))
    if any(b - a < 1e-3 for a, b in pairwise(found)):
        needed = ", ".join(
            f"{s:.3f} at {devices.frequency_name(f)}" for s, f in zip(found, setting.frequencies, strict=True)
        )
        raise Rt3Error(f"deadline {1e3 * o.deadline_s:g} ms: the levels do not differ ({needed}): allow less time")
    return tuple(found)


def _say_space(space: Space, setting: Setting, progress: Progress) -> dict[str, Any]:
    """Say how large the space is before and after the deadline rules out what it can."""
    size, shrunk = space.size, space.shrunk_size
    progress.say(
        f"search space: {size:.3g} children, {shrunk:.3g} after the deadline rules out what cannot be in time "
        f"({len(space.ladders)} ladders of sparsities); backbone {space.backbone_density:.4f} of the weights"
    )
    for name, source in setting.sources.items():
        progress.say(f"{name}: {source}")
    return {"size": float(size), "shrunk": float(shrunk), "backbone_density": space.backbone_density}


def _choose(
    trained: Trained, space: Space, setting: Setting, journal: Journal, open_: Callable[..., Any], data: Path | None
) -> Choice:
    """Propose and score children, and return the best; what the journal has is not trained again."""
    o = setting.options
    if o.search == "none":
        return Choice(tuple(range(space.levels)), ((0,) * len(space.layers),) * space.levels)
    reward = _reward(trained, space, setting)
    strategy = _strategy(space, o)
    known = {r["child"]: r for r in journal.of("child")}
    episodes = journal.of("episode")
    workers = None
    best: tuple[float, Choice] | None = None
    with trained.progress.task("children", o.children) as tick:
        for first in range(0, o.children, o.episode_batch):
            children = strategy.propose(min(o.episode_batch, o.children - first))
            unknown = {c.key: c for c in children if c.key not in known and not _misses(space, c)}
            if unknown and workers is None:
                workers = open_(partial(_child_trainer, setting, space, trained.store, trained.sentences), o.threads)
            scores = workers.train(list(unknown.values())) if workers and unknown else []
            for key, score in zip(unknown, scores, strict=True):
                journal.add({"kind": "child", "child": key, "seed": o.seed} | score)
                known[key] = journal.records[-1]
            rewards = []
            for i, child in enumerate(children):
                row = _episode(first + i, child, space, reward, known.get(child.key), child.key in unknown)
                rewards.append(row["reward"])
                if first + i >= len(episodes):
                    journal.add(row)
                if row["accuracy"] and (best is None or row["reward"] > best[0]):
                    best = row["reward"], child
                tick()
            strategy.learn(children, rewards)
    if workers is not None:
        workers.close()
    if best is None:
        raise JobError(f"none of {o.children} children met the deadline: propose more (--children), or allow more time")
    trained.progress.say(f"best of {o.children} children: reward {best[0]:.4f}")
    _restore(trained)
    return best[1]


def _misses(space: Space, child: Choice) -> bool:
    return bool(space.deadline_s) and any(s > space.deadline_s for s in space.latencies(child))


def _episode(
    number: int, child: Choice, space: Space, reward: Reward, known: dict[str, Any] | None, trained: bool
) -> dict[str, Any]:
    """Return the row of the journal of one proposal; a child that was scored before is not trained again."""
    seconds = space.latencies(child)
    runs = reward.runs(seconds)
    accuracy = None if known is None else known.get("accuracy")
    value = reward.missed(runs) if accuracy is None else reward(runs, accuracy)
    return {
        "kind": "episode",
        "number": number,
        "child": child.key,
        "latency_ms": [1e3 * s for s in seconds],
        "runs": runs,
        "accuracy": accuracy,
        "reward": value,
        "trained": trained,
    }


def _strategy(space: Space, options: SearchOptions) -> Strategy:
    seed = seed_of(options.seed, "strategy")
    if options.search == "rl":
        return Controller(space, options.controller, seed)
    return {"random": RandomSearch, "evolution": Evolution}[options.search](space, seed)


def _reward(trained: Trained, space: Space, setting: Setting) -> Reward:
    """Return the reward; constants that were not given follow from the dense model and from the space."""
    r = setting.options.reward
    dense = r.accuracy_dense
    if dense is None:
        dense = float(trained.figures["dense"]["valid"]["accuracy"])
    least = r.accuracy_min if r.accuracy_min is not None else ACCURACY_MIN_OF_DENSE * dense
    if least >= dense:
        raise Rt3Error(f"accuracy floor {least:g} must be below the dense model's {dense:g}")
    ladder = space.ladders[0]
    densest = Choice(ladder, tuple(tuple(o[0] for o in level) for level in space.options(ladder)))
    runs = runs_of(r, setting.states, space.latencies(densest)) or 1.0
    offset = runs if r.runs_offset is None else r.runs_offset
    scale = runs if r.runs_scale is None else r.runs_scale
    return Reward(least, dense, setting.options.level_weights, offset, scale, r, setting.states)


def _child_trainer(setting: Setting, space: Space, store: Store, sentences: tuple[str, ...]) -> ChildTrainer:
    """Return what trains children, from the states on disk."""
    dense, backbone = (store.load(name) for name in ("dense", "backbone"))
    assert dense is not None and backbone is not None
    model, teacher = (models.build(models.describe(setting.model)) for _ in range(2))
    teacher.load_state_dict(take(dense[0], "model/"))
    trained = Trained(model, setting.data, setting.options, store, Silent(), sentences, teacher)
    start = take(backbone[0], "model/")
    model.load_state_dict(start)
    return ChildTrainer(model, start, teacher, setting.data, space, setting.options, trained.training(), sentences)


def _restore(trained: Trained) -> None:
    """Take the backbone's weights again."""
    found = trained.store.load("backbone")
    assert found is not None
    trained.load(take(found[0], "model/"))


def _finish(
    trained: Trained,
    levels: tuple[Level, ...],
    setting: Setting,
    space: Space,
    choice: Choice,
    journal: Journal,
    facts: dict[str, Any],
) -> Found:
    """Return the checkpoint with the accuracies of every level; the test split is read here, once."""
    o = setting.options
    assert trained.teacher is not None
    known = journal.of("tested")
    if known:
        tests = known[-1]["figures"]
    else:
        dense = setting.data.evaluate(trained.teacher, "test")
        tests = [dense, *(trained.validate(masks_of(level.matrices), "test") for level in levels)]
        journal.add({"kind": "tested", "figures": tests})
    rows = []
    done = []
    seconds = space.latencies(choice)
    for level, tested, took in zip(levels, tests[1:], seconds, strict=True):
        valid = trained.validate(masks_of(level.matrices))
        rows.append({"density": level.density, "valid": valid, "test": tested, "latency_ms": 1e3 * took})
        done.append(replace(level, accuracy=tested["accuracy"]))
    figures = {
        "dense": {"valid": trained.figures["dense"]["valid"], "test": tests[0]},
        "levels": rows,
        "phases": {name: dict(f) | {"levels": None} for name, f in trained.figures.items()},
        "space": facts,
        "runs": runs_of(o.reward, setting.states, seconds),
        "children": {"episodes": len(journal.of("episode")), "trained": len(journal.of("child"))},
    }
    task = TASKS[o.task]
    checkpoint_facts = {
        "dense_accuracy": tests[0]["accuracy"],
        "accuracy_source": f"measured: {task.metric}, test split of task {o.task}, by rt3 search",
        "search": o.to_json(),
        "sources": setting.sources,
    }
    checkpoint = Checkpoint(
        models.describe(setting.model),
        trained.weights(),
        tuple(done),
        setting.skipped,
        tokenizer_files(setting.source),
        checkpoint_facts,
    )
    return Found(checkpoint, figures)


def _train_alone(
    trained: Trained, start: dict[str, torch.Tensor], space: Space, choice: Choice, figures: dict[str, Any]
) -> None:
    """Train every level alone for as long, to compare with: what sharing one weight costs."""
    for i in range(space.levels):
        trained.load(start)

        def cut(weights: dict[str, Any], part: float, i: int = i) -> tuple[Level, ...]:
            return (space.cut(choice, weights, part)[i],)

        levels = train_levels(trained, f"alone-{i}", cut, (1.0,))
        masks = masks_of(levels[0].matrices)
        figures["levels"][i]["alone"] = {"valid": trained.validate(masks), "test": trained.validate(masks, "test")}
