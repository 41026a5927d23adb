"""Latency models: RT3's, tables, what is measured here, and bad input."""

import json
from dataclasses import replace
from functools import partial

import pytest

from rt3_tvm import device
from rt3_tvm import model as models
from rt3_tvm.bench.clock import CPUFREQ, pinned
from rt3_tvm.bench.kernel import host
from rt3_tvm.bench.latency import LatencyOptions, bench_latency
from rt3_tvm.bench.peak import clock_hz
from rt3_tvm.cli.main import main
from rt3_tvm.codegen import CompileOptions
from rt3_tvm.device import lowest_in_time
from rt3_tvm.energy.latency import (
    MatrixLoad,
    Rt3Latency,
    TableLatency,
    TableRow,
    at_density,
    frequencies_in_time,
    smallest_sparsity,
)
from rt3_tvm.errors import JobError, Rt3Error

TABLE = TableLatency(
    "cortex-a53",
    32,
    1,
    (
        TableRow(0, 0, 0, 1.0, 1e9, 0.002, 0.0),
        TableRow(64, 32, 0, 1.0, 1e9, 0.010, 0.004),
        TableRow(64, 32, 4, 0.25, 1e9, 0.003, 0.001),
        TableRow(64, 32, 4, 0.75, 1e9, 0.009, 0.003),
    ),
    "table.json",
)
ONE = (MatrixLoad(64, 32, 0.5, 4),)


def test_table_by_hand():
    """Half way between 4 ms and 12 ms, and 2 ms for the rest; at 500 MHz what runs in the caches takes twice as long."""
    assert TABLE.seconds(1e9, ONE) == pytest.approx(0.002 + 0.008)
    assert TABLE.seconds(5e8, ONE) == pytest.approx(0.004 + (0.006 + 0.001 + 0.018 + 0.003) / 2)
    assert TABLE.seconds(1e9, at_density(ONE, 1.0)) == pytest.approx(0.016)
    assert TABLE.seconds(1e9, at_density(ONE, 0.01, 4)) == pytest.approx(0.006), "no sparser than what was measured"
    assert TABLE.seconds(1e9, (MatrixLoad(999, 9, lookup=True),)) == pytest.approx(0.002)
    assert TABLE.source.startswith("measured on a cortex-a53 at 1GHz, 32 tokens")


def test_from_the_densest_that_was_measured_the_line_goes_to_the_dense_kernel():
    """0.875 is half way between 12 ms at 0.75 and 14 ms dense."""
    assert TABLE.seconds(1e9, at_density(ONE, 0.875, 4)) == pytest.approx(0.002 + 0.013)
    assert TABLE.seconds(1e9, (MatrixLoad(64, 32, 1.0, 2),)) == pytest.approx(0.016), (
        "a dense level has no use for its group"
    )


def test_a_level_is_never_slower_than_dense():
    slow = TableLatency("x", 1, 1, (*TABLE.table[:2], TableRow(64, 32, 4, 0.75, 1e9, 1.0, 0.0)), "t")
    assert slow.seconds(1e9, at_density(ONE, 0.75, 4)) == slow.seconds(1e9, at_density(ONE, 1.0))


def test_the_nearest_frequency_is_scaled():
    two = TableLatency("x", 1, 1, (TABLE.table[0], TableRow(0, 0, 0, 1.0, 2e9, 0.0015, 0.0)), "t")
    assert two.seconds(1e9, ()) == pytest.approx(0.002) and two.seconds(2e9, ()) == pytest.approx(0.0015)
    assert two.seconds(1.8e9, ()) == pytest.approx(0.0015 * 2 / 1.8)


def test_a_table_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE.to_json()))
    assert TableLatency.load(path) == TABLE


def test_what_a_table_lacks_is_one_line():
    with pytest.raises(
        Rt3Error, match=r"table.json: no latency of 64x32 with V=8: it has 64x32 V=0, 64x32 V=4: measure"
    ):
        TABLE.seconds(1e9, (MatrixLoad(64, 32, 0.5, 8),))


def test_element_types_are_kept_apart(tmp_path):
    table = replace(TABLE, table=(*TABLE.table, TableRow(64, 32, 0, 1.0, 1e9, 0.004, 0.0, "int8")), path="t")
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table.to_json()))
    assert TableLatency.load(path) == table
    dense = MatrixLoad(64, 32)
    assert table.seconds(1e9, (dense,)) == TABLE.seconds(1e9, (dense,))
    assert table.seconds(1e9, (replace(dense, dtype="int8"),)) == pytest.approx(0.002 + 0.004)
    with pytest.raises(
        Rt3Error, match=r"t: no latency of 64x32 with V=4 int8: it has 64x32 V=0, 64x32 V=0 int8, 64x32 V=4"
    ):
        table.seconds(1e9, (MatrixLoad(64, 32, 0.5, 4, dtype="int8"),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "format 'x', expected 'rt3-latency-1'"),
        ({"rows": []}, "'rows' must be a list that is not empty"),
        ({"tokens": 0}, "'tokens' must be a positive whole number, not 0"),
        ({"rows": [3]}, r"rows\[0\]: must be a table"),
        ({"rows": [{}]}, r"rows\[0\]: 'rows' must be a number"),
        (
            {"rows": [TABLE.table[0].__dict__ | {"compute_s": -1}]},
            r"rows\[0\]: 'compute_s' must be a number in \[0, 3600\]",
        ),
        ({"rows": [TABLE.table[0].__dict__ | {"more": 1}]}, r"rows\[0\]: unknown key 'more'"),
        (
            {"rows": [TABLE.table[0].__dict__ | {"dtype": "int4"}]},
            r"rows\[0\]: 'dtype' must be one of float32, float16, int8, not 'int4'",
        ),
    ],
)
def test_bad_tables(tmp_path, change, message):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE.to_json() | change))
    with pytest.raises(Rt3Error, match=message):
        TableLatency.load(path)


def test_the_level_table_follows_from_a_latency_model():
    """At 1 GHz 10 ms at half density: 0.25 and 1.0 by hand from the table."""
    levels = [partial(TABLE.seconds, loads=at_density(ONE, d, 4)) for d in (1.0, 0.5, 0.25)]
    opps = (2e9, 1.5e9, 1e9, 5e8)
    assert lowest_in_time(levels, opps, 0.0121) == (1.5e9, 1e9, 5e8)
    with pytest.raises(Rt3Error, match=r"deadline 5 ms: level 0 takes 10 ms even at 2GHz: prune more"):
        lowest_in_time(levels, opps, 0.005)
    with pytest.raises(Rt3Error, match=r"levels 0 and 1 both need 500MHz: level 1 would never run"):
        lowest_in_time(levels, opps, 1.0)


def test_frequencies_in_time_are_the_boards_own():
    """RT3's model by hand, 16 tokens: m multiplications and m - 64 additions, at 3 GHz over the clock."""
    board = device.load("odroid-xu3")
    levels = [at_density([MatrixLoad(64, 4096)], d) for d in (1.0, 0.5)]
    ms = [16 * (0.014370e-4 * m + 0.014575e-4 * (m - 64)) for m in (64 * 4096, 32 * 4096)]
    deadline = ms[0] * 1e-3 * 3e9 / 1.35e9  # between two operating points
    found, source = frequencies_in_time(board, levels, "rt3", 16, deadline)
    in_time = [[o.hz for o in board.cluster.opps if m * 1e-3 * 3e9 / o.hz <= deadline] for m in ms]
    assert found == tuple(map(min, in_time)) and found[0] == 1.4e9 and source.startswith("modelled: RT3's")
    with pytest.raises(Rt3Error, match="latency needs deadline_s, and no frequencies"):
        CompileOptions(latency="rt3", deadline_s=1.0, frequencies=(1e9, 8e8))


def test_smallest_sparsity_of_a_table():
    needed = smallest_sparsity(TABLE, ONE, 1e9, 0.010, group=4)
    assert needed == pytest.approx(0.5, abs=1e-6)
    assert smallest_sparsity(TABLE, ONE, 1e9, 0.1, group=4) == 0.0


def test_rt3_counts_tokens():
    assert Rt3Latency(10).seconds(1e9, ONE) == pytest.approx(10 * Rt3Latency().seconds(1e9, ONE))


@pytest.mark.slow
def test_measured_table_of_a_model(monkeypatch):
    for name, few in {"ROUNDS": 1, "COLD_FACTOR": 0, "COLD_BYTES": 1 << 20}.items():
        monkeypatch.setattr(f"rt3_tvm.bench.latency.{name}", few)  # how well it measures is not asked here
    dtypes = tuple({"float32", host().elements[-1].dtype})
    table = bench_latency(models.load("random-tiny"), LatencyOptions(32, (4,), (0.5,), dtypes))
    assert {r.dtype for r in table.table} == set(dtypes)
    shapes = {(r.rows, r.cols) for r in table.table}
    assert shapes == {(0, 0), (48, 48), (96, 48), (48, 96)}
    assert {r.hz for r in table.table} == {clock_hz()}, "all of it at the clock that was measured in this process"
    assert all(r.compute_s > 0 for r in table.table)
    loads = [MatrixLoad(*s, density=0.5, group=4) for s in shapes if s[0]]
    assert 0 < table.seconds(clock_hz(), loads) < table.seconds(clock_hz() / 2, loads)


def fake_cpufreq(root, low, high):
    folder = root / CPUFREQ / "policy0"
    folder.mkdir(parents=True)
    (folder / "scaling_min_freq").write_text(f"{low}\n")
    (folder / "scaling_max_freq").write_text(f"{high}\n")
    return folder


def test_a_frequency_is_held_and_given_back(tmp_path):
    folder = fake_cpufreq(tmp_path, 300000, 1800000)

    def limits():
        return [(folder / f"scaling_{n}_freq").read_text().strip() for n in ("min", "max")]

    with pinned(1e9, tmp_path):
        assert limits() == ["1000000", "1000000"]
    assert limits() == ["300000", "1800000"]
    with pytest.raises(JobError, match="boom"), pinned(1e9, tmp_path):
        raise JobError("boom")
    assert limits() == ["300000", "1800000"]


def test_a_machine_without_cpufreq_says_so(tmp_path):
    with pytest.raises(Rt3Error, match="leave frequencies out"), pinned(1e9, tmp_path):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seq-len", "0"], "--seq-len must be at least 1"),
        (["--groups", "0"], "--groups 0: each must be at least 1"),
        (["--sparsity", "1.5"], "each must be in"),
        (["--freqs", "fast"], "give it as 1.4GHz"),
        (["--dtype", "int4"], "--dtype 'int4' is unknown: choose from float32, float16, int8"),
    ],
)
def test_bad_latency_benchmarks_are_one_line(tmp_path, arguments, message, capsys):
    out = tmp_path / "x.json"
    assert main(["bench", "latency", "random-tiny", "-o", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_compile_by_latency(saved_checkpoint, tmp_path, capsys):
    arguments = [
        "compile",
        str(saved_checkpoint),
        "-o",
        str(tmp_path / "m.so"),
        "--device",
        "odroid-xu3",
        "--seq-len",
        "16",
    ]
    assert main([*arguments, "--latency", "rt3"]) == 2
    assert "--latency needs --deadline" in capsys.readouterr().err
    assert main([*arguments, "--latency", "rt3", "--deadline", "0.001"]) == 2
    assert "takes" in capsys.readouterr().err and not (tmp_path / "m.so").exists()
