"""What a device is."""

from dataclasses import dataclass
from typing import Any

from rt3_tvm.device.frequencies import frequency_name
from rt3_tvm.errors import Rt3Error, choices

ASSUMED_L1D_BYTES, ASSUMED_L2_BYTES = 32 * 1024, 256 * 1024
"""Caches of a core whose own are not known: the smallest of the boards in ``targets`` that say."""


@dataclass(frozen=True)
class OperatingPoint:
    """One OPP: frequency in Hz, supply in V (0 where unknown)."""

    hz: float
    volts: float


@dataclass(frozen=True)
class Cluster:
    """Equal cores.

    Parameters
    ----------
    target
        The TVM target, see :meth:`target_dict`.
    lanes, registers
        float32 lanes and registers of the vector unit.
    opps
        Operating points, descending in Hz.
    l1d_bytes, l2_bytes, l3_bytes
        Caches; 0 where unknown.
    isa
        Instruction set and extensions.
    capacity
        Work per clock as Linux's ``capacity-dmips-mhz``, 1024 for the best core of the device; 0 where unknown.
    power_uw_per_mhz_v2
        Linux's ``dynamic-power-coefficient``: uW / (MHz V^2) of one busy core; 0 where unknown.
    static_w
        W that the cluster draws whatever it does; 0 where unknown.
    """

    name: str
    core: str
    cores: int
    target: tuple[tuple[str, Any], ...]
    lanes: int
    registers: int
    opps: tuple[OperatingPoint, ...]
    l1d_bytes: int = 0
    l2_bytes: int = 0
    l3_bytes: int = 0
    isa: str = ""
    capacity: int = 0
    power_uw_per_mhz_v2: float = 0.0
    static_w: float = 0.0

    def target_dict(self) -> dict[str, Any]:
        """Return the target as TVM takes it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.target}

    def operating_point(self, hz: float, where: str) -> OperatingPoint:
        """Return the operating point of a frequency; ``where`` names who asked for it in the error."""
        for opp in self.opps:
            if abs(opp.hz - hz) < 0.5:
                return opp
        known = ", ".join(frequency_name(o.hz) for o in self.opps) or "none"
        raise Rt3Error(
            f"{where}: cluster '{self.name}' does not have {frequency_name(hz)}: its frequencies are {known}"
        )


@dataclass(frozen=True)
class PublishedLevels:
    """Operating points and a power coefficient that a publication used for the device, beside the kernel's figures."""

    opps: tuple[OperatingPoint, ...]
    power_uw_per_mhz_v2: float


@dataclass(frozen=True)
class Device:
    """A board or phone; code is generated for the first cluster unless another is asked for."""

    name: str
    title: str
    clusters: tuple[Cluster, ...]
    source: str
    published: PublishedLevels | None = None
    notes: str = ""

    @property
    def cluster(self) -> Cluster:
        """The first cluster."""
        return self.clusters[0]

    def with_cluster(self, name: str) -> "Device":
        """Return the device with the cluster of that name first."""
        chosen = [c for c in self.clusters if c.name == name]
        if not chosen:
            known = choices(c.name for c in self.clusters)
            raise Rt3Error(f"device '{self.name}' has no cluster '{name}': choose from {known}")
        rest = tuple(c for c in self.clusters if c.name != name)
        return Device(self.name, self.title, (chosen[0], *rest), self.source, self.published, self.notes)
