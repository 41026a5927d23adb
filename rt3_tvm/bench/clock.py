"""The clock of this machine: what it is, and holding it where the machine lets us."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rt3_tvm.device import frequency_name
from rt3_tvm.errors import JobError, Rt3Error

CPUFREQ = Path("sys/devices/system/cpu/cpufreq")
LIMITS = ("scaling_min_freq", "scaling_max_freq")


@contextmanager
def pinned(hz: float, root: Path = Path("/"), policy: str = "policy0") -> Iterator[None]:
    """Hold one frequency by cpufreq's limits, and give the limits back at the end.

    Raises
    ------
    Rt3Error
        The machine shows no cpufreq, or does not let us write it.
    JobError
        It took the limits but runs at another frequency.
    """
    folder = root / CPUFREQ / policy
    try:
        before = {name: (folder / name).read_text(encoding="utf-8").strip() for name in LIMITS}
    except OSError as error:
        raise Rt3Error(
            f"`frequencies`: '{folder}' cannot be read: leave `frequencies` out to measure at the clock it runs at"
        ) from error
    khz = str(round(hz / 1e3))
    # The lower limit may never exceed the upper one, so their order depends on the direction.
    order = LIMITS if int(khz) < int(before["scaling_min_freq"]) else LIMITS[::-1]
    try:
        for name in order:
            (folder / name).write_text(khz, encoding="utf-8")
    except OSError as error:
        _restore(folder, before)
        raise Rt3Error(
            f"`frequencies`: cannot hold {frequency_name(hz)}: {error.strerror} '{error.filename}': "
            "run as root, or leave them out"
        ) from error
    try:
        for name in LIMITS:
            if (folder / name).read_text(encoding="utf-8").strip() != khz:
                raise JobError(f"{folder / name} does not take {frequency_name(hz)}: is it an operating point?")
        yield
    finally:
        _restore(folder, before)


@contextmanager
def kept(root: Path = Path("/"), policy: str = "policy0") -> Iterator[None]:
    """Give back at the end the limits that there are now, whoever changes them; nothing where the machine shows none."""
    folder = root / CPUFREQ / policy
    try:
        before = {name: (folder / name).read_text(encoding="utf-8").strip() for name in LIMITS}
    except OSError:
        before = {}
    try:
        yield
    finally:
        _restore(folder, before)


def _restore(folder: Path, before: dict[str, str]) -> None:
    """Write limits back, whichever order the kernel takes."""
    for _ in range(2):
        for name, value in before.items():
            try:
                (folder / name).write_text(value, encoding="utf-8")
            except OSError:
                continue
