"""Devices: clusters of cores with operating points, power, caches and TVM targets; from TOML, or this machine as it is."""

from rt3_tvm.device.frequencies import frequency_name, parse_frequencies, parse_frequency
from rt3_tvm.device.toml import load, names, parse, tag_table
from rt3_tvm.device.types import HOST_LABELS_HZ, Cluster, Device, OperatingPoint, PublishedLevels, spread

__all__ = [
    "HOST_LABELS_HZ",
    "Cluster",
    "Device",
    "OperatingPoint",
    "PublishedLevels",
    "frequency_name",
    "load",
    "names",
    "parse",
    "parse_frequencies",
    "parse_frequency",
    "spread",
    "tag_table",
]
