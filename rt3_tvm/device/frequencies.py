"""Frequencies as users write them."""

import re
from collections.abc import Sequence
from itertools import pairwise

from rt3_tvm.errors import Rt3Error

_UNITS = {"ghz": 1e9, "mhz": 1e6, "khz": 1e3, "hz": 1.0, "": 1.0}


def parse_frequency(text: str) -> float:
    """Return the Hz of '1.4GHz', '800MHz' or a plain number of Hz."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kmg]?hz|)\s*", text.lower())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1e6 <= value <= 1e11:
        raise Rt3Error(f"frequency '{text}': give it as 1.4GHz, 800MHz or Hz, between 1 MHz and 100 GHz")
    return value


def parse_frequencies(text: str) -> tuple[float, ...]:
    """Return the Hz of frequencies that commas separate."""
    return tuple(parse_frequency(part) for part in text.split(","))


def check_frequencies(given: Sequence[float], levels: int) -> None:
    """Check that there is one frequency for each level, descending.

    Raises
    ------
    Rt3Error
        It is not so.
    """
    if len(given) != levels:
        raise Rt3Error(f"`frequencies`: {len(given)} for {levels} levels: give one for each level")
    if any(a <= b for a, b in pairwise(given)):
        listed = ",".join(map(frequency_name, given))
        raise Rt3Error(f"`frequencies` {listed}: give them from the highest to the lowest, each once")


def frequency_name(hz: float) -> str:
    """Return a frequency as people write it: '1.4GHz', '796.8MHz'."""
    return f"{hz / 1e9:.10g}GHz" if hz >= 1e9 else f"{hz / 1e6:.10g}MHz"
