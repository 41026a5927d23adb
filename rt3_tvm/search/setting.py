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
from rt3_tvm.energy.power import Power, PowerState, measured_power, modelled_power, published_power
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
    frequencies = options.frequencies or _default_frequencies(device, power, options)
    states = _states(frequencies, power, device, options)
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
