"""``rt3 search``: from a dense model and a task to a checkpoint with a level for each frequency.

    dense training -> block pruning -> training of the backbone -> search space, shrunk by the deadline
        -> children, proposed and scored -> joint training of the best -> checkpoint

Everything between is in a folder beside the checkpoint: a journal, and the state of each phase. The test split is read once, at
the end.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rt3_tvm import model as models
from rt3_tvm.checkpoint import Checkpoint, Level
from rt3_tvm.errors import Rt3Error, choices
from rt3_tvm.files import held
from rt3_tvm.prune.one_shot import tokenizer_files
from rt3_tvm.search.episodes import Episodes, OpenWorkers
from rt3_tvm.search.journal import Journal
from rt3_tvm.search.options import PHASES, SearchOptions
from rt3_tvm.search.phase import Trained
from rt3_tvm.search.phases import prune_blocks, train_backbone, train_dense, train_levels
from rt3_tvm.search.planning import plan_ratios, plan_space, planned_backbones
from rt3_tvm.search.progress import Progress, Silent
from rt3_tvm.search.reward import runs_of
from rt3_tvm.search.row_grouping import group_rows
from rt3_tvm.search.setting import Setting, configuration, load_setting
from rt3_tvm.search.space import Choice, Space
from rt3_tvm.search.store import Store
from rt3_tvm.search.training import masks_of
from rt3_tvm.search.workers import open_workers
from rt3_tvm.tasks import TASKS, read_sentences

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Found:
    """The checkpoint, and figures: of each phase, of the space, of the best child, of the levels on both splits."""

    checkpoint: Checkpoint
    figures: dict[str, Any]


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
    restart: str | None = None,
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
        The phase of an earlier search that is done again, and those after it: a row of PHASES. What came before is kept, if the
        options that mattered there are the same.

    Raises
    ------
    Rt3Error
        Options that do not fit together, no sparsity that meets the deadline, a journal of another configuration,
        or another process that searches into the same folder.
    JobError
        The loss diverged, or a file could not be written.
    """
    if output.exists() and not (output / "checkpoint.json").is_file():
        raise Rt3Error(f"'{output}' exists and is not a checkpoint: choose another `output`")
    folder = folder_of(output)
    _check_restart(restart, folder)
    torch.set_num_threads(options.threads)
    said: Progress = progress or Silent()
    setting = load_setting(model_name, options, data)
    ratios = plan_ratios(setting)
    plan_space(setting, planned_backbones(setting, ratios))  # what cannot be in time is said before anything is trained
    sentences = tuple(s for path in options.unlabelled for s in read_sentences(path))
    with held(folder):
        store = Store(folder)
        config = configuration(setting)
        if restart is None:
            journal = Journal.open(folder / JOURNAL, config)
        else:
            journal = Journal.restarted(folder / JOURNAL, config, restart)
            store.keep(PHASES[: PHASES.index(restart)])  # before the journal: killed in between, nothing stale is taken
            journal.rewrite()
        trained = Trained(setting.model, setting.data, options, store, said, sentences)
        opened = partial(open_workers, workers, address=ray_address)
        found = _run_phases(setting, trained, ratios, journal, opened)
        found.checkpoint.save(output)
        return found


def _check_restart(phase: str | None, folder: Path) -> None:
    if phase not in (None, *PHASES):
        raise Rt3Error(f"`restart` {phase}: choose from {choices(PHASES)}")
    if phase not in (None, PHASES[0]) and not (folder / JOURNAL).is_file():
        raise Rt3Error(f"`restart` {phase}: '{folder}' has no earlier search: leave it out")


def _run_phases(
    setting: Setting, trained: Trained, ratios: dict[str, float], journal: Journal, opened: OpenWorkers
) -> Found:
    """Run every phase, from dense training to the levels."""
    options = setting.options
    train_dense(trained)
    if options.group_rows:
        group_rows(setting.model, {layer.name for layer in setting.layers})
    backbones = prune_blocks(trained, setting.layers, ratios)
    train_backbone(trained, backbones)
    space = plan_space(setting, backbones)
    facts = _say_space(space, setting, trained.progress)
    if options.search == "none":
        choice = Choice(tuple(range(space.levels)), ((0,) * len(space.layers),) * space.levels)
    else:
        choice = Episodes(trained, space, setting, journal, opened).run()
    start = {n: v.clone() for n, v in setting.model.state_dict().items()}
    levels = train_levels(trained, "joint", partial(space.cut, choice), options.level_weights)
    found = _finish(trained, levels, setting, space, choice, journal, facts)
    if options.alone:
        _train_alone(trained, start, space, choice, found.figures)
    found.checkpoint.facts["figures"] = found.figures
    return found


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
    if not journal.of("ended"):
        masks = [masks_of(level.matrices) for level in levels]
        valid = [trained.validate(m) for m in masks]
        tests = [setting.data.evaluate(trained.teacher, "test"), *(trained.validate(m, "test") for m in masks)]
        journal.add({"kind": "ended", "valid": valid, "test": tests})
    ended = journal.of("ended")[-1]
    tests = ended["test"]
    rows = []
    done = []
    seconds = space.latencies(choice)
    for level, valid, tested, took in zip(levels, ended["valid"], tests[1:], seconds, strict=True):
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
        trained.set_weights(start)

        def cut(weights: dict[str, Any], part: float, i: int = i) -> tuple[Level, ...]:
            return (space.cut(choice, weights, part)[i],)

        levels = train_levels(trained, f"alone-{i}", cut, (1.0,))
        masks = masks_of(levels[0].matrices)
        figures["levels"][i]["alone"] = {"valid": trained.validate(masks), "test": trained.validate(masks, "test")}
