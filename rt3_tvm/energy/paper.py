"""``rt3 simulate --paper``: the table that RT3's own constants imply. Everything here is modelled."""

from dataclasses import dataclass
from typing import Any

from rt3_tvm import device as devices
from rt3_tvm import rt3
from rt3_tvm.energy.battery import runs_per_charge
from rt3_tvm.energy.latency import Rt3Latency, at_density, language_model_loads, smallest_sparsity
from rt3_tvm.energy.power import PowerState, dynamic_power
from rt3_tvm.transformer_lm import TransformerLMConfig


@dataclass(frozen=True)
class PaperRow:
    """One configuration: ms and sparsity by level, inferences per charge, and those over the first row's."""

    name: str
    latency_ms: tuple[float, ...]
    sparsity: tuple[float, ...]
    runs: float
    ratio: float

    def to_json(self) -> dict[str, Any]:
        """Return the row for ``--json``."""
        return {
            "name": self.name,
            "latency_ms": list(self.latency_ms),
            "sparsity": list(self.sparsity),
            "runs": self.runs,
            "ratio": self.ratio,
        }


def paper_rows() -> list[PaperRow]:
    """Return dense and backbone at the top clock and with DVFS, then RT3's levels for its three deadlines."""
    published = devices.load(rt3.DEVICE).published
    assert published is not None
    states = [PowerState(o.hz, dynamic_power(o.hz, o.volts, published.power_uw_per_mhz_v2)) for o in published.opps]
    sizes = TransformerLMConfig()
    model = Rt3Latency()
    loads = language_model_loads(sizes.vocab_size, sizes.hidden_size, sizes.intermediate_size, sizes.num_hidden_layers)
    rows: list[PaperRow] = []

    def add(name: str, sparsity: tuple[float, ...]) -> None:
        used = states[: len(sparsity)]
        seconds = [model.seconds(s.hz, at_density(loads, 1.0 - p)) for s, p in zip(used, sparsity, strict=True)]
        shares = rt3.SHARES if len(used) > 1 else (1.0,)
        runs = runs_per_charge(rt3.BATTERY_J, used, seconds, shares)
        ratio = runs / rows[0].runs if rows else 1.0
        rows.append(PaperRow(name, tuple(1e3 * s for s in seconds), sparsity, runs, ratio))

    for name, sparsity in (("dense", 0.0), (f"backbone {rt3.BACKBONE_SPARSITY:.2%}", rt3.BACKBONE_SPARSITY)):
        add(f"{name}, {states[0].hz / 1e9:g} GHz only", (sparsity,))
        add(f"{name} + DVFS", (sparsity,) * len(states))
    for deadline in rt3.DEADLINES_S:
        levels = tuple(smallest_sparsity(model, loads, s.hz, deadline, at_least=rt3.BACKBONE_SPARSITY) for s in states)
        add(f"RT3, deadline {1e3 * deadline:g} ms", levels)
    return rows
