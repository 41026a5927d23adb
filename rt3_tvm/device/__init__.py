"""Devices: clusters of cores with operating points, power, caches and TVM targets; from TOML, or this machine as it is."""

from rt3_tvm.device.frequencies import check_frequencies, frequency_name, parse_frequencies, parse_frequency
from rt3_tvm.device.levels import HOST_LABELS_HZ, level_frequencies, lowest_in_time
from rt3_tvm.device.toml import load, names, parse, tag_table
from rt3_tvm.device.types import Cluster, Device, OperatingPoint, PublishedLevels

__all__ = [
    "HOST_LABELS_HZ",
    "Cluster",
    "Device",
    "OperatingPoint",
    "PublishedLevels",
    "check_frequencies",
    "frequency_name",
    "level_frequencies",
    "load",
    "lowest_in_time",
    "names",
    "parse",
    "parse_frequencies",
    "parse_frequency",
    "tag_table",
]
