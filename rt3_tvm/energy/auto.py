"""The bundle's ``auto`` mode in simulated time: the runtime's own C code, compiled on use and asked through ctypes."""

import ctypes
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from rt3_tvm.c_compiler import native_compiler, run_compiler
from rt3_tvm.errors import Rt3Error
from rt3_tvm.runtime.c_api import AutoOptions, CLevelInfo

SOURCES = ("governor.c", "cpufreq.c", "error.c")
"""Of the runtime: the rule, how it reads a clock, and what that needs."""
STATE_WORDS = 6


class Auto:
    """``auto`` of one handle, a :class:`~rt3_tvm.energy.dispatchers.Dispatcher`; it begins with the first inference.

    Parameters
    ----------
    hz
        Of the operating points.
    levels
        For each level the lowest Hz that it is for, and its deadline in s (0: none), as a bundle's level table has them.
    dwell_s, poll_s, hysteresis
        Of ``rt3_auto_options``; 0: the default.

    Raises
    ------
    Rt3Error
        There is no C compiler.
    JobError
        It fails.
    """

    def __init__(
        self,
        hz: Sequence[float],
        levels: Sequence[tuple[float, float]],
        dwell_s: float = 0.0,
        poll_s: float = 0.0,
        hysteresis: float = 0.0,
    ) -> None:
        self._library = library()
        self._clocks = read_clocks(hz)
        self._levels = (CLevelInfo * len(levels))(*(CLevelInfo(f, deadline, 0.0) for f, deadline in levels))
        self._options = AutoOptions(None, 0, dwell_s, poll_s, hysteresis)
        self._state = (ctypes.c_int64 * -(-self._library.auto_state_bytes() // 8))()
        self._words = (ctypes.c_int64 * STATE_WORDS)()
        self._level = -1

    def steady(self, index: int) -> None:
        """Return None: it remembers."""

    def current(self, index: int) -> int:
        """Return the level of the last inference; 0, that of a new handle, before the first."""
        return max(0, self._level)

    def take(self, index: int, now: float) -> int:
        """Return the level of an inference that begins at ``now`` s."""
        clock = self._clocks[index]
        if self._level < 0:
            self._library.auto_start(self._state, self._options, self._levels, len(self._levels), clock, now)
        self._level = self._library.auto_take(self._state, clock, now)
        return self._level

    def finish(self, level: int, seconds: float) -> None:
        """Hear that an inference ended, and how long it took."""
        self._library.auto_finish(self._state, level, seconds)

    def state(self, now: float) -> bytes:
        """Return what the levels of later inferences depend on while the clock stays, times as seen from ``now``."""
        if self._level < 0:
            return b""
        self._library.auto_describe(self._state, now, self._words)
        return bytes(self._words)

    def shift(self, seconds: float) -> None:
        """Let time pass, with inferences after which the state is what it is."""
        self._library.auto_shift(self._state, seconds)


@cache
def library() -> ctypes.CDLL:
    """Return the C code, compiled for this process: it takes a fraction of a second."""
    compiler = native_compiler()
    if compiler is None:
        raise Rt3Error("`auto` asks the bundle's own C code, compiled on use, but there is no C compiler: install gcc")
    runtime = Path(str(resources.files("rt3_tvm.runtime.c")))
    own = Path(str(resources.files("rt3_tvm.energy"))) / "auto.c"
    with tempfile.TemporaryDirectory(prefix="rt3-") as name:
        sources = [str(own), *(str(runtime / source) for source in SOURCES)]
        flags = ["-std=c11", "-O2", "-fPIC", "-shared", f"-I{runtime}"]
        run_compiler(compiler, [*flags, *sources, "-lm", "-o", "auto.so"], Path(name))
        return _declared(ctypes.CDLL(str(Path(name) / "auto.so")))


def _declared(code: ctypes.CDLL) -> ctypes.CDLL:
    state, level, real = ctypes.c_void_p, ctypes.c_int32, ctypes.c_double
    options, levels = ctypes.POINTER(AutoOptions), ctypes.POINTER(CLevelInfo)
    arguments = {
        "auto_state_bytes": [],
        "auto_start": [state, options, levels, level, real, real],
        "auto_take": [state, real, real],
        "auto_finish": [state, level, real],
        "auto_describe": [state, real, ctypes.POINTER(ctypes.c_int64)],
        "auto_shift": [state, real],
        "auto_read_clock": [ctypes.c_char_p],
    }
    for name, types in arguments.items():
        getattr(code, name).argtypes = types
        getattr(code, name).restype = None
    code.auto_state_bytes.restype = ctypes.c_size_t
    code.auto_take.restype = level
    code.auto_read_clock.restype = real
    return code


def read_clocks(hz: Sequence[float]) -> tuple[float, ...]:
    """Return what the runtime reads where cpufreq tells these clocks, which it does in whole kHz."""
    with tempfile.TemporaryDirectory(prefix="rt3-") as name:
        file = Path(name) / "scaling_cur_freq"

        def read(clock: float) -> float:
            file.write_text(f"{int(clock / 1e3)}\n", encoding="ascii")
            return float(library().auto_read_clock(bytes(file)))

        return tuple(map(read, hz))
