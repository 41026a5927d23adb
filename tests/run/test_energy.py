"""The battery: engine against a plain time-step reference and by hand, governors, power, traces, and bad input."""

import json
import math

import pytest

from rt3_tvm import device
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.cli.main import main
from rt3_tvm.energy import governors
from rt3_tvm.energy.battery import parse_battery
from rt3_tvm.energy.governors import ByCharge, Fixed, Trace, governor
from rt3_tvm.energy.power import measured_power, modelled_power
from rt3_tvm.energy.simulation import Workload, spend_charge
from rt3_tvm.errors import Rt3Error

WORKLOAD = Workload(
    watts=(0.3, 0.1), idle_w=0.02, level_of=(0, 1), seconds=((0.04, 0.02), (0.12, 0.06)), period_s=0.1, deadline_s=0.05
)
"""Two operating points: 40 ms at the first, 60 ms (sparser level, late) at the second, ten inferences a second."""


def stepped(joules, workload, policy, horizon, step=1e-4):
    """The same in small steps of time: independent of the engine, and only nearly exact."""
    left, index, now, tick = joules, 0, 0.0, 0
    served, late, skipped, running, remaining, began, due = [0, 0], 0, 0, -1, 0.0, 0.0, 0
    while left > 0 and now < horizon:
        index = policy(now, left / joules, index)
        if workload.period_s:
            while due * workload.period_s <= now + 1e-9:
                if running < 0:
                    running, remaining, began = workload.level_of[index], 1.0, now
                else:
                    skipped += 1
                due += 1
        elif running < 0:
            running, remaining, began = workload.level_of[index], 1.0, now
        left -= step * (workload.watts[index] if running >= 0 else workload.idle_w)
        tick += 1
        now = tick * step
        if running >= 0:
            remaining -= step / workload.seconds[index][running]
            if remaining <= 1e-9:
                served[running] += 1
                late += now - began > workload.deadline_s + 1e-9
                running = -1
    return served, late, skipped, now


@pytest.mark.parametrize("period", [0.1, 0.05, 0.0])
@pytest.mark.parametrize(
    ("policy", "step_policy"),
    [
        (Fixed(0), lambda now, charge, index: 0),
        (Fixed(1), lambda now, charge, index: 1),
        (ByCharge((0, 1), (0.6, 0.4)), lambda now, charge, index: 0 if charge > 0.4 else 1),
        (
            Trace((0.0, 1.23, 2.5), (1, 0, 1)),
            lambda now, charge, index: 1 if now < 1.23 - 1e-9 or now > 2.5 - 1e-9 else 0,
        ),
    ],
    ids=["performance", "powersave", "charge", "trace"],
)
def test_engine_against_small_steps(period, policy, step_policy):
    workload = Workload(**(WORKLOAD.__dict__ | {"period_s": period}))
    for joules, horizon in ((0.71, math.inf), (5.0, 4.07)):
        ours = spend_charge(joules, workload, policy, horizon)
        served, late, skipped, seconds = stepped(joules, workload, step_policy, horizon)
        assert sum(ours.served) == pytest.approx(sum(served), abs=1)
        assert ours.served == pytest.approx(served, abs=1)
        assert (ours.late, ours.skipped) == (pytest.approx(late, abs=1), pytest.approx(skipped, abs=1))
        assert ours.seconds == pytest.approx(seconds, rel=2e-3)


def test_energy_is_exact():
    """By hand: a period costs 0.04 s x 0.3 W + 0.06 s x 0.02 W = 13.2 mJ, so 1000 J are 75757 periods and a rest of 7.6 mJ."""
    ours = spend_charge(1000.0, WORKLOAD, Fixed(0))
    assert ours.served == [75757, 0] and ours.missed == 0
    assert ours.joules == pytest.approx(1000.0, rel=1e-12)
    assert ours.seconds == pytest.approx(7575.7 + (1000 - 75757 * 0.0132) / 0.3, rel=1e-9)


def test_an_inference_keeps_its_level_when_the_clock_changes():
    workload = Workload((1.0, 1.0), 0.0, (0, 1), ((0.1, 0.05), (0.2, 0.1)), deadline_s=0.12)
    ours = spend_charge(10.0, workload, Trace((0.0, 0.05), (0, 1)), horizon_s=0.05 + 0.1)
    assert ours.served == [1, 0], "half at 0.1 s, half at 0.2 s: 0.15 s at level 0"
    assert ours.late == 1


@pytest.mark.parametrize(
    ("name", "busy", "expected"),
    [
        ("ondemand", 0.9, 2e9),  # above 80 %: the top
        ("schedutil", 0.9, 2e9),
        ("conservative", 0.5, 2e9),  # between the thresholds it stays
        ("performance", 0.1, 2e9),
        ("powersave", 0.1, 2e8),
    ],
)
def test_where_governors_settle(name, busy, expected):
    hz = (2e9, 1e9, 5e8, 2e8)
    seconds = tuple((busy * 0.1 * hz[0] / f,) for f in hz)
    workload = Workload((0.4, 0.2, 0.1, 0.05), 0.0, (0,) * 4, seconds, period_s=0.1)
    ours = spend_charge(1000.0, workload, governor(name, hz, hz[:1], (1.0,), 0.1))
    longest = max(ours.segments, key=lambda s: s.end - s.start)
    assert hz[longest.index] == expected and ours.joules == pytest.approx(1000.0)


def test_schedutil_follows_its_formula():
    """A load of 0.1 at 2 GHz wants 1.25 x 0.1 x 2 GHz = 250 MHz: 500 MHz is the lowest that is as fast, and stays so."""
    hz = (2e9, 1e9, 5e8, 2e8)
    workload = Workload((0.4, 0.2, 0.1, 0.05), 0.0, (0,) * 4, tuple((0.01 * 2e9 / f,) for f in hz), period_s=0.1)
    ours = spend_charge(10.0, workload, governor("schedutil", hz, hz[:1], (1.0,), 0.1))
    assert hz[ours.segments[-1].index] == 5e8


def test_a_cycle_is_multiplied_not_walked():
    """Ondemand at a load of 0.75 at the top wants 1.55 GHz, is above 80 % at 1.6 GHz, goes back: for ever."""
    hz = (2e9, 1.6e9, 2e8)
    workload = Workload((0.4, 0.25, 0.05), 0.01, (0,) * 3, tuple((0.075 * 2e9 / f,) for f in hz), period_s=0.1)
    ours, longer = (spend_charge(j, workload, governor("ondemand", hz, hz[:1], (1.0,), 0.1)) for j in (1e6, 1e9))
    assert len(ours.segments) == len(longer.segments) == 6, "a thousand times the charge is not one stretch more"
    # By hand: 0.0325 J and 0.0244375 J in turn, so 0.05691... J every two periods.
    pair = (0.075 * 0.4 + 0.025 * 0.01) + (0.09375 * 0.25 + 0.00625 * 0.01)
    assert ours.runs == pytest.approx(2 * 1e6 / pair, rel=1e-6) and ours.skipped == 0
    assert any(s.mixed for s in ours.segments)


class Looked(tuple):
    """A tuple that counts how often somebody looks into it."""

    def __init__(self, _values):
        self.looks = 0

    def __getitem__(self, i):
        self.looks += 1
        return super().__getitem__(i)

    def __iter__(self):
        return (self[i] for i in range(len(self)))


def test_a_change_of_the_clock_is_one_event_and_found_by_halving():
    """A day of changes every second, ten inferences between two of them: none is walked to, neither change nor inference."""
    changes = 86_400
    times, seconds = Looked(map(float, range(changes))), Looked(WORKLOAD.seconds)
    trace = Trace(times, tuple(t % 2 for t in range(changes)))
    ours = spend_charge(1e9, Workload(**(WORKLOAD.__dict__ | {"seconds": seconds})), trace, float(changes))
    assert ours.runs == pytest.approx(864_000, rel=0.01) and len(ours.segments) == changes
    assert times.looks <= changes * (math.ceil(math.log2(changes)) + 2)
    assert changes <= seconds.looks <= 2 * changes


@pytest.mark.parametrize(
    ("text", "joules"),
    [("37800J", 37800), ("37800", 37800), ("10.5 Wh", 37800), ("3000mAh x 3.5V", 37800), ("1kJ", 1000)],
)
def test_batteries(text, joules):
    assert parse_battery(text) == pytest.approx(joules)


@pytest.mark.parametrize("text", ["0J", "0", "-5J", "full", "3000mAh", "1e12J", ""])
def test_bad_batteries(text):
    with pytest.raises(Rt3Error, match=r"give it as 37800J, 10\.5Wh or 3000mAhx3\.85V"):
        parse_battery(text)


def test_modelled_power_by_hand():
    """RK3399 little at 1.416 GHz: 100 uW/(MHz V^2) x 1416 MHz x (1.125 V)^2."""
    power = modelled_power(device.load("rk3399").cluster, "rk3399", cores=2, static_w=0.1)
    opp = device.load("rk3399").cluster.opps[0]
    assert power.states[0].watts == pytest.approx(2 * 100e-6 * 1416 * opp.volts**2 + 0.1)
    assert power.idle_w == 0.1 and power.source.startswith("modelled")
    for name in ("sdm845", "raspberrypi4", "odroid-n2"):
        with pytest.raises(Rt3Error, match=rf"{name}: .*give power, a file of measured watts"):
            modelled_power(device.load(name).cluster, name)


def power_file(tmp_path, points, cluster="silver"):
    path = tmp_path / "power.json"
    rows = [{"frequency_hz": hz, "measured": {"power_mw": mw}} for hz, mw in points]
    path.write_text(json.dumps({"clusters": [{"name": cluster, "points": rows}]}))
    return path


def test_measured_power(tmp_path):
    cluster = device.load("sdm845").cluster
    path = power_file(tmp_path, [(300000000, 50.0), (1766400000, 400.0)])
    power = measured_power(path, cluster, cores=2)
    assert [(s.hz, s.watts) for s in power.states] == [(1.7664e9, 0.8), (3e8, 0.1)]
    assert len(power.left_out) == 16 and power.source.startswith("measured: power.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^power .*power.json: Expecting value"),
        ("[]", "expected clusters"),
        ('{"clusters": [{"name": "gold", "points": []}]}', "no cluster 'silver': it has gold"),
        ('{"clusters": [{"name": "silver", "points": [{}]}]}', r"silver.points\[0\]: expected frequency_hz"),
        (
            '{"clusters": [{"name": "silver", "points": [{"frequency_hz": 3e8, "measured": {"power_mw": -1}}]}]}',
            "cannot be",
        ),
        (
            '{"clusters": [{"name": "silver", "points": [{"frequency_hz": 7e8, "measured": {"power_mw": 1}}]}]}',
            "none of its frequencies of 'silver'",
        ),
    ],
)
def test_bad_power_files(tmp_path, text, message):
    path = tmp_path / "power.json"
    path.write_text(text)
    with pytest.raises(Rt3Error, match=message):
        measured_power(path, device.load("sdm845").cluster)


def test_traces(tmp_path):
    cluster = device.load("odroid-xu3").cluster
    hz = [o.hz for o in cluster.opps]
    path = tmp_path / "trace.csv"
    path.write_text("seconds,frequency\n# a comment\n0,1.4GHz\n60,1.4GHz\n3600 1000000000\n\n7200,800MHz\n")
    trace = governors.read_trace(path, cluster, hz)
    assert trace.times == (0.0, 3600.0, 7200.0) and [hz[i] for i in trace.indices] == [1.4e9, 1e9, 8e8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1.4GHz\n60,1GHz\n30,1.4GHz", r"trace.csv:3: 30 s comes after 60 s: a trace goes forward"),
        (
            "0,1.4GHz\n60,1.45GHz",
            r"trace.csv:2: cluster 'LITTLE' does not have 1.45GHz: its frequencies are 1.4GHz, 1.3GHz",
        ),
        ("5,1.4GHz", r"begins at 0 s"),
        ("0,1.4GHz\nsoon,1GHz", r"trace.csv:2: 'soon,1GHz': expected seconds and a frequency"),
        ("0", "expected seconds and a frequency"),
        ("# nothing", "no line with seconds"),
        ("0,1.4GHz\nnan,1GHz", "forward in time"),
    ],
)
def test_bad_traces(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    cluster = device.load("odroid-xu3").cluster
    with pytest.raises(Rt3Error, match=message):
        governors.read_trace(path, cluster, [o.hz for o in cluster.opps])


def test_bad_governors():
    with pytest.raises(Rt3Error, match="unknown governor 'turbo': choose from conservative, ondemand"):
        governor("turbo", (1e9,), (1e9,))
    with pytest.raises(Rt3Error, match="3 shares for 1 frequencies"):
        governor("rt3", (1e9,), (1e9,))
    with pytest.raises(Rt3Error, match=r"^shares 0\.5,0\.6"):
        governor("rt3", (2e9, 1e9), (2e9, 1e9), (0.5, 0.6))


SIMULATE = ("--device", "odroid-xu3", "--freqs", "1.4GHz,1GHz,0.8GHz")


def simulated(capsys, path, *arguments):
    assert main(["simulate", str(path), "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_simulate_by_hand(saved_checkpoint, capsys):
    """RT3's model and c f V^2 by hand for the dense model at the top clock; the shares of RT3 for its levels."""
    found = simulated(capsys, saved_checkpoint, *SIMULATE, "--battery", "100J")
    weights = sum(m.size for n, m in Checkpoint.load(saved_checkpoint).weights.items() if n in MATRICES)
    adds = weights - sum(Checkpoint.load(saved_checkpoint).weights[n].shape[0] for n in MATRICES)
    seconds = (weights * 0.014370e-7 + adds * 0.014575e-7) * 3 / 1.4
    watts = 90e-12 * 1.4e9 * 1.275**2
    dense = found["rows"][0]
    assert dense["latency_ms"] == pytest.approx([1e3 * seconds]) and dense["runs"] == pytest.approx(
        100 / watts / seconds, abs=1
    )
    rt3 = found["rows"][3]
    power = [90e-12 * 1.4e9 * 1.275**2, 90e-12 * 1e9 * 1.1**2, 90e-12 * 0.8e9 * 1.1**2]
    runs = [
        100 * share / w / (ms / 1e3) for share, w, ms in zip((0.5, 0.3, 0.2), power, rt3["latency_ms"], strict=True)
    ]
    # The inference that runs while the clock changes keeps its denser level: it costs up to two of the next.
    assert rt3["served_by_level"] == pytest.approx(runs, abs=4) and rt3["ratio"] > 1
    assert rt3["density"] == pytest.approx([0.5, 0.25, 0.1], abs=0.02)


MATRICES = [
    f"encoder.layer.{i}.{n}.weight"
    for i in (0, 1)
    for n in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
] + ["pooler.dense.weight"]


def test_every_figure_says_where_it_comes_from(saved_checkpoint, tiny_bundle, capsys, tmp_path):
    sources = simulated(capsys, saved_checkpoint, *SIMULATE)["sources"]
    assert sources["latency"].startswith("modelled") and sources["power"].startswith("modelled")
    assert sources["accuracy"] == "unknown" and sources["runs, hours, missed"].startswith("modelled")
    power = power_file(tmp_path, [(1.4e9, 300.0), (1e9, 150.0), (8e8, 100.0)], "LITTLE")
    found = simulated(
        capsys, tiny_bundle, "--device", "odroid-xu3", "--power", str(power), "--accuracy", "0.9,0.8,0.7,0.6"
    )
    assert found["sources"]["power"].startswith("measured: power.json")
    assert "no figure for 1.3GHz, 1.2GHz" in found["sources"]["power"]
    assert found["rows"][0]["accuracy"] == 0.9 and 0.6 < found["rows"][3]["accuracy"] < 0.8
    served = found["rows"][3]["served_by_level"]
    mean = sum(n * a for n, a in zip(served, (0.8, 0.7, 0.6), strict=True)) / sum(served)
    assert found["rows"][3]["accuracy"] == pytest.approx(mean)


def test_levels_by_deadline(saved_checkpoint, capsys):
    """With a deadline and no frequencies named, every clock takes the densest level that is in time."""
    loose = simulated(capsys, saved_checkpoint, "--device", "odroid-xu3", "--deadline", "1000")["rows"][3]
    assert loose["missed"] == 0 and loose["density"] == pytest.approx([0.5] * 3, abs=0.02)
    tight = simulated(capsys, saved_checkpoint, "--device", "odroid-xu3", "--deadline", "0.1")["rows"][3]
    assert tight["density"][0] > tight["density"][1]


def test_published_power(saved_checkpoint, capsys):
    found = simulated(capsys, saved_checkpoint, *SIMULATE, "--power", "published")
    assert "as published, 100 uW" in found["sources"]["power"]
    assert main(["simulate", str(saved_checkpoint), "--device", "rk3399", "--power", "published"]) == 2
    assert "nothing was published for 'rk3399'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "rpi9"], "unknown device 'rpi9'"),
        ([], "no device: pass --device NAME"),
        (
            ["--device", "rk3399"],
            "is for another device than 'rk3399': give --freqs: cluster 'little' does not have 1.4GHz",
        ),
        (
            ["--device", "odroid-xu3", "--freqs", "1.4GHz,1GHz,0.85GHz"],
            "--freqs: cluster 'LITTLE' does not have 850MHz",
        ),
        (["--device", "odroid-xu3", "--freqs", "1.4GHz"], "--freqs: 1 for 3 levels: give one for each level"),
        (["--device", "odroid-xu3", "--governor", "turbo"], "unknown governor 'turbo': choose from conservative"),
        (["--device", "odroid-xu3", "--shares", "50,50"], "2 shares for 3 frequencies"),
        (["--device", "odroid-xu3", "--accuracy", "0.9"], "--accuracy names 1: give the dense model's"),
        (["--device", "odroid-xu3", "--latency", "nowhere.json"], "--latency nowhere.json: "),
        (["--device", "odroid-xu3", "--power", "nowhere.json"], "--power nowhere.json: "),
        (["--device", "odroid-xu3", "--trace", "nowhere.csv"], "--trace nowhere.csv: "),
        (["--device", "odroid-xu3", "--cores", "9"], "--cores 9: cluster 'LITTLE' of odroid-xu3 has 4"),
        (["--device", "odroid-xu3", "--rate", "-1"], "--rate -1 must be at least 0"),
        (["--device", "odroid-xu3", "--hours", "0"], "--hours 0 must be above 0"),
        (["--device", "odroid-xu3", "--deadline", "nan"], "--deadline nan must be at least 0"),
    ],
)
def test_bad_simulations_are_one_line(tiny_bundle, arguments, message, capsys):
    assert main(["simulate", str(tiny_bundle), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_checkpoint_of_another_device_is_one_line(tmp_path, capsys):
    path = tmp_path / "m.ckpt"
    assert main(["prune", "random-tiny", "-o", str(path), "--freqs", "1.4GHz,1GHz,0.8GHz"]) == 0
    assert Checkpoint.load(path).levels[1].frequency_hz == 1e9
    capsys.readouterr()
    for command in (["simulate", str(path)], ["compile", str(path), "-o", str(tmp_path / "m.so")]):
        assert main([*command, "--device", "rk3399"]) == 2
        said = capsys.readouterr().err
        assert "another device than 'rk3399'" in said and "does not have 1.4GHz" in said and said.count("\n") == 1
    assert simulated(capsys, path, "--device", "odroid-xu3")["frequencies_hz"] == [1.4e9, 1e9, 8e8]
    for missing in (tmp_path / "nothing", tmp_path / "nothing.so"):
        assert main(["simulate", str(missing), "--device", "odroid-xu3"]) == 2
        assert "no such checkpoint or bundle" in capsys.readouterr().err


def test_the_backbone_is_compared_where_there_is_one(saved_checkpoint, tiny_bundle, capsys):
    names = [row["name"] for row in simulated(capsys, saved_checkpoint, *SIMULATE)["rows"]]
    assert names == ["dense, 1.4GHz only", "dense + DVFS", "backbone + DVFS", "RT3's levels + DVFS"]
    rows = simulated(capsys, saved_checkpoint, *SIMULATE)["rows"]
    assert rows[2]["density"] == pytest.approx([0.75] * 3, abs=0.02)
    names = [row["name"] for row in simulated(capsys, tiny_bundle, *SIMULATE)["rows"]]
    assert names[2] == "level 0 alone (no backbone) + DVFS"


def test_simulate_for_people(saved_checkpoint, tmp_path, capsys):
    trace = tmp_path / "day.csv"
    trace.write_text("0,1.4GHz\n3600,800MHz\n7200,1GHz\n")
    command = ["simulate", str(saved_checkpoint), *SIMULATE, "--trace", str(trace), "--rate", "10", "--hours", "24"]
    assert main([*command, "--deadline", "1", "--battery", "3000mAhx3.7V"]) == 0
    out = capsys.readouterr().out
    assert "latency: modelled" in out and "24.00" in out and "battery: given: 39960 J; trace" in out
