"""What is tuned, how long and on which devices."""

import math
import re
from dataclasses import dataclass

from rt3_tvm.codegen.options import MAX_THREADS, CompileOptions
from rt3_tvm.device import frequency_name, parse_frequency
from rt3_tvm.errors import Rt3Error
from rt3_tvm.options import DTYPES, NAMES, SHARES, TEXT, WHOLE, Kind, documented, option, wholes

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
LIST = "list"


def _check_device(tracker: str | None, key: str | None) -> None:
    if (tracker is None) != (key is None):
        raise Rt3Error("`rpc_tracker` and `rpc_key` need each other: give both, or neither for this machine")


def _read_duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None:
        raise Rt3Error(f"'{text}': give a duration, as 90s, 30m or 2h")
    return float(match[1]) * UNITS[match[2]]


def _write_duration(seconds: float) -> str:
    return f"{seconds:g}s"


def _read_tasks(text: str) -> tuple[int, ...] | str:
    if text == LIST:
        return LIST
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise Rt3Error(f"'{text}': give list, or numbers of tasks as 0,2 or 3-5")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(dict.fromkeys(found))


def _write_tasks(tasks: tuple[int, ...] | str) -> str:
    return tasks if isinstance(tasks, str) else ",".join(map(str, tasks))


DURATION = Kind("30m", _read_duration, _write_duration, "s")
TASKS = Kind("list|N,N|N-N", _read_tasks, _write_tasks)
FREQUENCY = Kind("F", parse_frequency, frequency_name, "Hz")


@documented
@dataclass(frozen=True)
class TuneOptions:
    """What is tuned, how long and on which devices."""

    device: str = option("host", TEXT, "name of a device, see rt3 devices, or a path that ends in .toml")
    cluster: str | None = option(None, TEXT, "cluster whose cores it is tuned for; default the device's first")
    lengths: tuple[int, ...] = option(
        (128,),
        wholes("sequence lengths", "T,T"),
        "sequence lengths in tokens, as rt3 compile takes them",
        name="seq-len",
    )
    batch: int = option(1, WHOLE, "largest batch, as rt3 compile takes it")
    threads: int = option(1, WHOLE, f"threads of a run, 1 to {MAX_THREADS}; a log holds for one number of them")
    dtype: tuple[str, ...] = option(
        ("float32",),
        NAMES.called("T,T,T"),
        f"what linear layers multiply, as rt3 compile takes it, of {', '.join(DTYPES)}",
    )
    keep_float: tuple[str, ...] = option(
        (), TEXT.called("GLOB"), "parameters whose linear layers keep float32, as rt3 compile takes it", repeated=True
    )
    shares: tuple[float, ...] | None = option(
        None, SHARES, "how often each level runs, in %; default all equally", name="shares"
    )
    tasks: tuple[int, ...] | str | None = option(
        None, TASKS, "print the tasks with their part of the time, or tune these; default all, by their part"
    )
    trials: int = option(64, WHOLE, "plans that are tried for each task; those in the log count")
    budget: float | None = option(
        None, DURATION, "end after this time, the tasks with the largest part of the time first"
    )
    rpc_tracker: str | None = option(
        None, TEXT.called("HOST:PORT"), "tracker of the devices to measure on; default this machine"
    )
    rpc_key: str | None = option(None, TEXT.called("KEY"), "key of those devices at the tracker")
    cross_compiler: str | None = option(None, TEXT.called("CMD"), "C compiler for the device, with its options")
    seed: int = option(0, WHOLE, "of the plans that are tried at random")

    def compiled(self) -> CompileOptions:
        """Return what a compilation is asked for that takes the plans."""
        return CompileOptions(lengths=self.lengths, dtype=self.dtype, keep_float=self.keep_float, batch=self.batch)

    def __post_init__(self) -> None:
        self.compiled()
        for name in ("trials", "batch"):
            if getattr(self, name) < 1:
                raise Rt3Error(f"`{name}` {getattr(self, name)} must be at least 1")
        if not self.lengths or any(n < 1 for n in self.lengths):
            raise Rt3Error(f"`lengths` {self.lengths}: give one or more, each at least 1")
        if not 1 <= self.threads <= MAX_THREADS:
            raise Rt3Error(f"`threads` {self.threads}: give 1 to {MAX_THREADS}")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise Rt3Error(f"`budget` {self.budget:g} s must be positive")
        _check_device(self.rpc_tracker, self.rpc_key)
        if self.shares is not None and (min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6):
            raise Rt3Error(
                f"`shares` {SHARES.write(self.shares)} %: give one for each level, not negative, 100 % together"
            )


@documented
@dataclass(frozen=True)
class RemoteOptions:
    """On which device a bundle runs."""

    rpc_tracker: str | None = option(
        None, TEXT.called("HOST:PORT"), "tracker of the device to run on; default this machine"
    )
    rpc_key: str | None = option(None, TEXT.called("KEY"), "key of that device at the tracker, see rt3 rpc-server")
    cross_compiler: str | None = option(
        None, TEXT.called("CMD"), "C compiler for that device, for the dense model that is measured beside the bundle"
    )

    def __post_init__(self) -> None:
        _check_device(self.rpc_tracker, self.rpc_key)


@documented
@dataclass(frozen=True)
class ServerOptions:
    """How a board serves."""

    host: str = option("127.0.0.1", TEXT.called("HOST"), "address to listen at; TVM's RPC has no authentication")
    port: int = option(9091, WHOLE.called("PORT"), "port to listen at; 0: any that is free")
    tracker: str | None = option(None, TEXT.called("HOST:PORT"), "tracker to register at; default none")
    key: str = option("rt3", TEXT.called("KEY"), "what clients ask the tracker for")
    cluster: str | None = option(
        None, TEXT, "cores to run on: a name of rt3 devices probe, big or LITTLE; default those with the highest clock"
    )
    frequency: float | None = option(None, FREQUENCY, "hold this frequency, where permitted (root)", name="freq")

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise Rt3Error(f"`port` {self.port}: give 0 to 65535")
        if not self.key or any(c.isspace() for c in self.key):
            raise Rt3Error(f"`key` '{self.key}': give a word")
