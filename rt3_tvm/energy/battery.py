"""The charge of a battery, and the inferences that it is good for."""

import re
from collections.abc import Sequence

from rt3_tvm.energy.power import PowerState
from rt3_tvm.errors import Rt3Error
from rt3_tvm.options import Kind


def parse_battery(text: str) -> float:
    """Return the J of '37800J', '10.5Wh' or '3000mAh x 3.85V'."""
    number = r"([0-9]*\.?[0-9]+(?:e[0-9]+)?)"
    squeezed = re.sub(r"\s+", "", text.lower())
    joules = 0.0
    if match := re.fullmatch(rf"{number}(j|kj|wh|)", squeezed):
        joules = float(match[1]) * {"j": 1.0, "": 1.0, "kj": 1e3, "wh": 3600.0}[match[2]]
    elif match := re.fullmatch(rf"{number}mah[x*@]{number}v", squeezed):
        joules = float(match[1]) * 3.6 * float(match[2])
    if not 0.0 < joules <= 1e9:
        raise Rt3Error(f"battery '{text}': give it as 37800J, 10.5Wh or 3000mAhx3.85V, above 0")
    return joules


BATTERY = Kind("J", parse_battery, "{:g}J".format, "J")


def runs_per_charge(
    joules: float, states: Sequence[PowerState], seconds: Sequence[float], shares: Sequence[float]
) -> float:
    """Return the inferences that a battery is good for, run back to back.

    Parameters
    ----------
    joules
        The charge.
    states, seconds, shares
        For each level: its power state, the s of one inference, and its part of the charge; the parts sum to 1.
    """
    assert abs(sum(shares) - 1.0) < 1e-9
    spent = zip(states, seconds, shares, strict=True)
    return sum(joules * share / (state.watts * took) for state, took, share in spent)
