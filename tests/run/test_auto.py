"""``auto`` in the simulation: against the same C functions asked one inference after the other, by hand, and what it costs."""

import ctypes
import json
import math
from bisect import bisect_right
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from rt3_tvm.cli.main import main
from rt3_tvm.codegen.link import C_FLAGS, runtime_directory
from rt3_tvm.energy import auto
from rt3_tvm.energy.auto import Auto
from rt3_tvm.energy.governors import Fixed, Trace, governor
from rt3_tvm.energy.simulation import Workload, spend_charge
from rt3_tvm.runtime.c_api import AutoOptions, CLevelInfo
from tests.conftest import need_program
from tests.run.test_energy import SIMULATE, simulated
from tests.runtime.test_c_api import run

HZ = (1.4e9, 1.39e9, 1.01e9, 1e9, 0.8e9)  # the third spares less than the hysteresis
LEVELS_HZ = (1.4e9, 1e9, 0.8e9)
LEVEL_OF = (0, 1, 1, 1, 2)
DWELL = 0.0937  # no sum of the times below: ties are not what is compared


def workload(seconds=0.03, **more):
    """Return one whose levels take 1, 0.7 and 0.5 of so many s at 1.4 GHz."""
    took = tuple(tuple(seconds * part * HZ[0] / hz for part in (1.0, 0.7, 0.5)) for hz in HZ)
    return Workload(
        **({"watts": (0.3, 0.29, 0.2, 0.16, 0.1), "idle_w": 0.02, "level_of": LEVEL_OF, "seconds": took} | more)
    )


def levels(deadline_s=0.0):
    return [(hz, deadline_s) for hz in LEVELS_HZ]


class LevelTable(ctypes.Structure):
    """``rt3_level_table``."""

    _fields_ = (("levels", ctypes.POINTER(CLevelInfo)), ("count", ctypes.c_int32))


class Direct:
    """The functions of ``governor.c`` and nothing else, as rt3_set_auto, rt3_take_level and rt3_run call them."""

    def __init__(self, path, deadline_s, poll_s):
        self.code = ctypes.CDLL(str(path))
        self.infos = (CLevelInfo * 3)(*(CLevelInfo(hz, deadline_s, 0.0) for hz in LEVELS_HZ))
        self.table = LevelTable(self.infos, 3)
        self.governor = (ctypes.c_double * 64)()
        self.options = AutoOptions(None, 0, DWELL, poll_s, 0.0)
        self.level = -1

    def take(self, hz, now):
        g = ctypes.byref(self.governor)
        if self.level < 0:
            self.code.rt3_governor_start(g, ctypes.byref(self.options), self.table, ctypes.c_double(now))
            self.level = next((i for i, f in enumerate(LEVELS_HZ) if f <= hz), 2)
        self.code.rt3_governor_polls.restype = ctypes.c_bool
        read = hz if self.code.rt3_governor_polls(g, ctypes.c_double(now)) else 0.0
        self.level = self.code.rt3_governor_choose(g, self.level, ctypes.c_double(read), ctypes.c_double(now))
        return self.level

    def finish(self, level, seconds):
        self.code.rt3_governor_finish(ctypes.byref(self.governor), level, ctypes.c_double(seconds))


@pytest.fixture(scope="module")
def governor_library(tmp_path_factory):
    compiler = need_program("cc", "install gcc")
    path = tmp_path_factory.mktemp("governor") / "governor.so"
    run(
        compiler,
        *C_FLAGS[:3],
        "-shared",
        f"-I{runtime_directory()}",
        runtime_directory() / "governor.c",
        "-lm",
        "-o",
        path,
    )
    return path


class Counted(Auto):
    """One that counts how often it is asked."""

    asked = 0

    def take(self, index, now):
        self.asked += 1
        return super().take(index, now)


def one_by_one(load, trace, direct, horizon):
    """Walk every inference: the levels, those that were late, those that were skipped, and J."""
    taken, late, skipped, joules, now, arrival = [], 0, 0, 0.0, 0.0, 0
    while True:
        begin = arrival * load.period_s if load.period_s else now
        joules += load.idle_w * (min(begin, horizon) - now)
        if begin >= horizon:
            return taken, late, skipped, joules
        arrival, now, left = arrival + 1, begin, 1.0
        # cpufreq tells whole kHz, and the runtime takes a clock for the highest that it may be.
        level = direct.take(HZ[trace.indices[bisect_right(trace.times, begin) - 1]] + 999.0, begin)
        while left > 1e-12:
            at = bisect_right(trace.times, now) - 1
            until = min(horizon, trace.times[at + 1] if at + 1 < len(trace.times) else math.inf)
            took, index = load.seconds[trace.indices[at]][level], trace.indices[at]
            spent = min(left * took, until - now)
            joules, now, left = joules + spent * load.watts[index], now + spent, left - spent / took
            if now >= horizon and left > 1e-12:
                return taken, late, skipped, joules
        taken.append(level)
        direct.finish(level, now - begin)
        late += 0 < load.deadline_s < now - begin
        if load.period_s:
            due = math.ceil(now / load.period_s)
            skipped, arrival = skipped + max(0, due - arrival), max(arrival, due)


@pytest.mark.parametrize("period", [0.0, 0.0413, 0.0071])
@pytest.mark.parametrize("deadline", [0.0, 0.0197, 0.0299, 0.05])
@pytest.mark.parametrize("between_s", [0.02, 0.5])
@pytest.mark.parametrize("poll", [0.0, 0.0617])
def test_simulation_is_the_c_code_asked_inference_by_inference(governor_library, period, deadline, between_s, poll):
    rng = np.random.default_rng(int(1e5 * (period + deadline + between_s)))
    times = (0.0, *np.cumsum(rng.uniform(0.1, 2.0, 150) * between_s).tolist())
    trace = Trace(times, tuple(rng.integers(0, len(HZ), len(times)).tolist()))
    load, horizon = workload(period_s=period, deadline_s=deadline), times[-1] + 7.77
    taken, late, skipped, joules = one_by_one(load, trace, Direct(governor_library, deadline, poll), horizon)
    by = Counted(HZ, levels(deadline), dwell_s=DWELL, poll_s=poll)
    ours = spend_charge(100.0, load, trace, horizon, by)
    assert by.asked < len(taken), "cycles are multiplied"
    assert ours.served == [Counter(taken)[level] for level in range(3)] and min(ours.served) > 0
    assert (ours.late, ours.skipped) == (late, skipped)
    assert ours.switches == pytest.approx(
        sum(a != b for a, b in pairwise(taken)), abs=1
    )  # the one in flight at the end
    assert ours.joules == pytest.approx(joules, rel=1e-9)
    if between_s < DWELL:
        assert ours.served != spend_charge(100.0, load, trace, horizon).served


def test_by_hand():
    """A hundred inferences a second, two dips of the clock. After the first the level comes back at 0.22 s; after the second, at
    0.27 s, the dwell time is not over: it does at 0.32 s."""
    load = workload(0.001, period_s=0.01)
    trace = Trace((0.0, 0.195, 0.215, 0.245, 0.265), (0, 3, 0, 3, 0))
    ours, table = (spend_charge(1e3, load, trace, 0.4, by) for by in (Auto(HZ, levels()), None))
    assert table.served == [36, 4, 0] and table.switches == 4
    assert ours.served == [31, 9, 0] and ours.switches == 4
    longer = spend_charge(1e3, load, trace, 0.4, Auto(HZ, levels(), dwell_s=0.15))
    assert longer.served == [26, 14, 0], "it comes back at 0.37 s"


def test_two_missed_deadlines_cost_a_level_by_hand():
    """Back to back, 30 ms where 25 are allowed: two late ones, then 21 ms each until the dwell time is over, for ever.

    The dwell time counts from the third inference. Of those of 21 ms the sixth begins 105 ms later and finds it over: what the
    misses cost ends; the seventh would rise. A cycle is 2 x 30 + 6 x 21 = 186 ms; 100 s are 537 of them, 2 late ones and 2 more.
    """
    load = workload(0.03, deadline_s=0.025)
    ours = spend_charge(1e6, load, Fixed(0), 100.0, Auto(HZ, levels(0.025)))
    table = spend_charge(1e6, load, Fixed(0), 100.0)
    assert table.served == [3333, 0, 0] and table.late == 3333
    assert ours.served == [2 * 538, 6 * 537 + 2, 0] and ours.late == 2 * 538 and ours.switches == 2 * 537 + 1


def test_a_fluttering_clock_switches_less_than_the_table_says():
    """Every 30 ms from one side of a level's frequency to the other, as thermal limits do."""
    changes = 400
    trace = Trace(tuple(0.0301 * i for i in range(changes)), tuple(i % 2 for i in range(changes)))
    load = workload(0.003)
    ours, table = (spend_charge(1e3, load, trace, 12.0, by) for by in (Auto(HZ, levels()), None))
    assert table.switches > 0.9 * changes
    assert 0 < ours.switches < 0.6 * table.switches
    assert ours.served[0] < table.served[0], "what it costs in accuracy: less of the densest level"


@pytest.mark.parametrize("period", [0.0, 0.1])
@pytest.mark.parametrize("index", range(len(HZ)))
def test_a_steady_load_is_the_same_by_both(period, index):
    load = workload(0.003, period_s=period, deadline_s=0.05)
    ours, table = (spend_charge(37800.0, load, Fixed(index), dispatcher=by) for by in (Auto(HZ, levels(0.05)), None))
    assert ours.served == pytest.approx(table.served, abs=1) and ours.runs > 1e6 and ours.missed == ours.switches == 0
    assert ours.seconds == pytest.approx(table.seconds, rel=1e-9) and ours.joules == pytest.approx(37800.0, rel=1e-12)


@pytest.mark.parametrize("name", ["performance", "rt3", "ondemand", "conservative", "schedutil"])
@pytest.mark.parametrize(("period", "deadline"), [(0.0, 0.0299), (0.0413, 0.0299), (0.0777, 0.017)])
def test_a_cycle_of_levels_is_multiplied_not_walked(name, period, deadline):
    """Levels that come and go with missed deadlines, and clocks that follow: a charge of days in some thousand questions."""
    load = workload(period_s=period, deadline_s=deadline)
    by = Counted(HZ, levels(deadline))
    ours = spend_charge(37800.0, load, governor(name, HZ, LEVELS_HZ, workload_period_s=period), dispatcher=by)
    assert ours.runs > 1e6 > 1e2 * by.asked and len(ours.segments) < 100
    assert ours.joules == pytest.approx(37800.0, rel=1e-6)


def test_policies_see_the_load_of_the_level_that_runs():
    """Ondemand at 1.4 GHz: at level 0 the load is 0.9, above 80 %; that of level 1, after two late ones, is 0.63."""
    load = workload(0.09, period_s=0.1, deadline_s=0.08)
    policy = governor("ondemand", HZ, LEVELS_HZ, workload_period_s=0.1)
    ours, table = (spend_charge(1e3, load, policy, 600.0, by) for by in (Auto(HZ, levels(0.08)), None))
    assert {s.index for s in table.segments} == {0}
    assert len({s.index for s in ours.segments if not s.mixed}) > 1


def test_levels_below_the_table_and_clocks_as_cpufreq_tells_them():
    assert auto.read_clocks((1386666667.0, 8e8)) == (1386666999.0, 800000999.0)
    by = Auto((1386666667.0, 5e8), [(1386666667.0, 0.0), (8e8, 0.0)])
    assert by.current(0) == 0 and by.take(0, 0.0) == 0 and by.take(1, 1.0) == 1 == by.current(1)


def test_the_c_code_has_no_warnings(tmp_path):
    need_program("cc", "install gcc")
    source = runtime_directory().parent.parent / "energy/auto.c"
    run("cc", *C_FLAGS, f"-I{runtime_directory()}", "-c", source, "-o", tmp_path / "auto.o")


def test_simulate_auto(saved_checkpoint, tmp_path, capsys):
    trace = tmp_path / "day.csv"
    trace.write_text("\n".join(f"{0.03 * i},{'1GHz' if i % 2 else '1.4GHz'}" for i in range(1000)))
    command = [*SIMULATE, "--trace", str(trace), "--rate", "100", "--hours", "0.01"]
    plain = simulated(capsys, saved_checkpoint, *command)
    found = simulated(capsys, saved_checkpoint, *command, "--auto")
    assert found["rows"][:4] == plain["rows"] and "auto" not in plain["sources"]
    table, ours = found["rows"][3:]
    assert ours["name"] == "RT3's levels + DVFS, auto" and 0 < ours["switches"] < table["switches"]
    assert "own C code, its default dwell time" in found["sources"]["auto"]
    slow = simulated(capsys, saved_checkpoint, *command, "--auto", "--dwell", "10000")["rows"][4]
    assert slow["switches"] < ours["switches"]
    assert main(["simulate", str(saved_checkpoint), *command, "--auto"]) == 0
    assert "switches" in capsys.readouterr().out


def test_auto_by_deadline_takes_the_levels_of_the_table(saved_checkpoint, capsys):
    rows = simulated(capsys, saved_checkpoint, "--device", "odroid-xu3", "--deadline", "0.1", "--auto")["rows"]
    assert rows[4]["density"] == rows[3]["density"] and sum(rows[4]["served_by_level"]) == rows[4]["runs"] > 0


@pytest.mark.parametrize(
    ("compiler", "code", "message"),
    [(None, 2, "--auto asks the bundle's own C code"), ("/no/such/cc", 1, "cannot run /no/such/cc: No such file")],
)
def test_without_a_compiler_it_is_one_line(saved_checkpoint, tmp_path, monkeypatch, capsys, compiler, code, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if compiler:
        monkeypatch.setenv("CC", compiler)
    auto.library.cache_clear()
    assert main(["simulate", str(saved_checkpoint), *SIMULATE, "--auto"]) == code
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out
    assert main(["simulate", str(saved_checkpoint), *SIMULATE, "--json"]) == 0, "without it none is needed"
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 4


def test_a_bad_dwell_time_is_one_line(saved_checkpoint, capsys):
    assert main(["simulate", str(saved_checkpoint), *SIMULATE, "--auto", "--dwell", "-1"]) == 2
    assert "--dwell -0.001 must be at least 0" in capsys.readouterr().err
