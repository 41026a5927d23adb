"""Power and battery: P = c f V^2. Modelled, never measured: callers say so."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PowerState:
    """A clock and what the core draws at it: Hz, W."""

    hz: float
    watts: float


def dynamic_power(hz: float, volts: float, uw_per_mhz_v2: float) -> float:
    """Return the W of a busy core at a frequency and a supply, by its coefficient in uW / (MHz V^2)."""
    return 1e-12 * uw_per_mhz_v2 * hz * volts * volts


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
