"""What a search works with, loaded and checked before anything is trained."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rt3_tvm import __version__
from rt3_tvm import device as devices
from rt3_tvm import model as models
from rt3_tvm.energy.latency import LatencyModel, latency_model, source_for
from rt3_tvm.energy.power import Power, PowerState, power_of
from rt3_tvm.errors import Rt3Error
from rt3_tvm.export import LinearLayer
from rt3_tvm.prune.one_shot import find_prunable
from rt3_tvm.search.options import SearchOptions
from rt3_tvm.tasks import Dataset, load_task


@dataclass(frozen=True)
class Setting:
    """What a search works with: the model and its data, the matrices, the device's frequencies and the power at them."""

    model_name: str
    model: torch.nn.Module
    data: Dataset
    options: SearchOptions
    layers: tuple[LinearLayer, ...]
    skipped: dict[str, str]
    lookups: frozenset[str]
    latency: LatencyModel
    frequencies: tuple[float, ...]
    states: tuple[PowerState, ...]
    source: Path | None
    sources: dict[str, str]


def load_setting(model_name: str, options: SearchOptions, data: Path | None) -> Setting:
    """Load everything and check that it fits together, before anything is trained."""
    device = devices.load(options.device)
    if options.cluster is not None:
        device = device.with_cluster(options.cluster)
    power = _power(device, options)
    powered = [state.hz for state in power.states] if power else None
    frequencies = devices.level_frequencies(device, options.levels, options.frequencies, powered=powered)
    states = power.at(frequencies) if power else ()
    model, dataset = load_task(options.task, data, model_name, options.seed)
    found = find_prunable(model, options.exclude, options.embeddings)
    if not found.layers:
        raise Rt3Error("no linear layer is left to prune")
    latency = latency_model(options.latency, options.tokens)
    sources = {
        "latency": source_for(latency, device.cluster.core),
        "power": power.source if power else "not known: R_runs is left out",
    }
    source = models.source_directory(model_name)
    return Setting(
        model_name,
        model,
        dataset,
        options,
        found.layers,
        found.skipped,
        found.lookups,
        latency,
        frequencies,
        states,
        source,
        sources,
    )


def _power(device: devices.Device, options: SearchOptions) -> Power | None:
    """Return the power of the device; None where it does not matter or, without a search, is not known."""
    if options.reward.runs_weight == 0.0:
        return None
    try:
        return power_of(device, options.power, options.cores)
    except Rt3Error as error:
        if options.power is not None:
            raise
        if options.search == "none":
            return None
        raise Rt3Error(f"{error.text}; or leave energy out of the reward with `runs_weight` 0") from error


def configuration(setting: Setting) -> dict[str, Any]:
    """Return everything that the result depends on."""
    digest = hashlib.sha256()
    for name, value in setting.model.state_dict().items():
        digest.update(name.encode() + value.detach().numpy().tobytes())
    files = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in setting.options.unlabelled if p.is_file()}
    if setting.options.latency != "rt3":
        files["latency"] = hashlib.sha256(Path(setting.options.latency).read_bytes()).hexdigest()
    return setting.options.to_json() | {
        "model": setting.model_name,
        "weights": digest.hexdigest(),
        "data": setting.data.fingerprint(),
        "files": files,
        "frequencies_hz": list(setting.frequencies),
        "rt3_tvm": __version__,
        "torch": torch.__version__,
    }
