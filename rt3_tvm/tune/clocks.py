"""The frequencies of a device behind RPC: each that it lets us set and runs at, else the clock that it has."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from rt3_tvm.codegen.link import choose_compiler
from rt3_tvm.device import frequency_name
from rt3_tvm.errors import Rt3Error
from rt3_tvm.tune.build import clock_library
from rt3_tvm.tune.measure import HOLD
from rt3_tvm.tune.session import Remote

OFF = 0.1
"""Part by which a clock may differ from what was asked for: a throttled core differs by more."""


@dataclass
class Clocks:
    """The clock of a device; ``read`` tells it in Hz, ``notes`` say what could not be set."""

    device: Remote
    read: Any
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, device: Remote, cross_compiler: str | None, target: Mapping[str, Any]) -> "Clocks":
        """Return the clocks of a device that runs code of a target."""
        triple, core = str(target.get("mtriple", "")), str(target.get("mcpu", ""))
        compiler = choose_compiler(triple, cross_compiler, platform.machine(), core)
        image, name = bytearray(clock_library(compiler)), f"{uuid4().hex}.so"
        device.ask(lambda: device.session.upload(image, name))
        module = device.ask(lambda: device.session.load_module(name))
        return cls(device, device.ask(lambda: module["clock"]))

    @property
    def hz(self) -> float:
        """The clock that the device runs at now, in whole MHz."""
        return round(float(self.device.ask(self.read)), -6)

    def each(self) -> Iterator[float]:
        """Yield frequency after frequency while the device holds it; the one clock that it has where it holds none."""
        board, count = self.device.board(), 0
        for hz in () if board.get("held_hz") else board.get("frequencies", ()):
            if self._hold(hz):
                count += 1
                yield hz
        if count == 0:
            yield self._as_it_is(board)
        if count < 2:
            self.notes.append("one clock: at another one, waiting for memory is taken to follow it too")

    def _hold(self, hz: float) -> bool:
        """Hold a frequency; whether the device did, and runs at it."""
        try:
            self.device.ask(lambda: self.device.session.get_function(HOLD)(hz))
        except Rt3Error as error:
            self.notes.append(f"{frequency_name(hz)} is left out: {error}")
            return False
        runs_at = self.hz
        if abs(runs_at / hz - 1) > OFF:
            self.notes.append(f"{frequency_name(hz)} is left out: held, the core runs at {frequency_name(runs_at)}")
            return False
        return True

    def _as_it_is(self, board: Mapping[str, Any]) -> float:
        """Return the one clock of a device, and say why there is one."""
        if board.get("held_hz"):
            self.notes.append(f"its server holds {frequency_name(board['held_hz'])}")
            return float(board["held_hz"])
        if not board.get("frequencies"):
            said = "the device shows no frequencies" if board else "it is no rt3 rpc-server"
            self.notes.append(f"no frequency is set: {said}")
        return self.hz
