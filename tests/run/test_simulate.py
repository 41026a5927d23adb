"""Modelled batteries: RT3's table, from its constants, as its publication implies it."""

import json

import pytest

from rt3_tvm import device
from rt3_tvm.cli.main import main
from rt3_tvm.energy.latency import Rt3Latency, at_density, language_model_loads, smallest_sparsity
from rt3_tvm.errors import Rt3Error
from tests.test_device import GOOD

# ms by level, sparsity in % by level, million runs, ratio: what RT3's constants imply, computed by hand from its formulas.
TABLE = (
    ((321.3,), (0,), 0.547, 1.00),
    ((321.3, 449.8, 562.2), (0, 0, 0), 0.666, 1.22),
    ((114.6,), (64.31,), 1.532, 2.80),
    ((114.6, 160.4, 200.5), (64.31, 64.31, 64.31), 1.866, 3.41),
    ((114.6, 115, 115), (64.31, 74.41, 79.52), 2.468, 4.52),
    ((104, 104, 104), (67.61, 76.85, 81.48), 2.726, 4.99),
    ((94, 94, 94), (70.72, 79.07, 83.25), 3.015, 5.52),
)
TOLERANCE = 0.005


def test_paper_table(capsys):
    assert main(["simulate", "--paper", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == len(TABLE)
    for row, (ms, sparsity, runs, ratio) in zip(rows, TABLE, strict=True):
        assert row["latency_ms"] == pytest.approx(ms, rel=TOLERANCE)
        assert row["sparsity"] == pytest.approx([s / 100 for s in sparsity], rel=TOLERANCE)
        assert row["runs"] == pytest.approx(runs * 1e6, rel=TOLERANCE)
        assert row["ratio"] == pytest.approx(ratio, rel=TOLERANCE)


def test_paper_table_for_people(capsys):
    assert main(["simulate", "--paper"]) == 0
    out = capsys.readouterr().out
    assert "everything modelled" in out and "4.52x" in out and "114.6 / 115.0 / 115.0" in out


def test_simulate_needs_to_know_what(capsys):
    assert main(["simulate"]) == 2 and "--paper" in capsys.readouterr().err


def test_ten_matrices_and_their_weights():
    work = language_model_loads(28785, 800, 200, 2)
    assert len(work) == 10 and sum(m.weights for m in work) == pytest.approx(51.8e6, rel=0.005)


def test_sparsity_for_a_deadline():
    model, loads = Rt3Latency(), language_model_loads(28785, 800, 200, 2)
    for hz in (1.4e9, 0.8e9):
        needed = smallest_sparsity(model, loads, hz, 0.1)
        assert model.seconds(hz, at_density(loads, 1 - needed)) == pytest.approx(0.1)
    assert smallest_sparsity(model, loads, 1.4e9, 10.0) == 0.0
    assert smallest_sparsity(model, loads, 1.4e9, 10.0, at_least=0.3) == 0.3
    with pytest.raises(Rt3Error, match=r"no sparsity meets -1 ms at 1\.4GHz: the nearest is"):
        smallest_sparsity(model, loads, 1.4e9, -0.001)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("published = 3", "must be a table"),
        ("[published]\nopps = [[1e9, 1.0]]", "'power_uw_per_mhz_v2' must be a number"),
        ("[published]\npower_uw_per_mhz_v2 = 5e9\nopps = [[1e9, 1.0]]", "'power_uw_per_mhz_v2' must be a number"),
        ("[published]\npower_uw_per_mhz_v2 = 100", "'opps' must be a list"),
        ("[published]\npower_uw_per_mhz_v2 = 100\nopps = [[1e9, 900.0]]", "900 V is outside"),
        ("[published]\npower_uw_per_mhz_v2 = 100\nopps = [[1e9, 1.0], [2e9, 1.0]]", "descend"),
    ],
)
def test_bad_published_levels_name_file_and_key(text, message):
    with pytest.raises(Rt3Error, match=rf"board\.toml: published.*{message}"):
        device.parse(f"{text}\n{GOOD}" if text.endswith("3") else f"{GOOD}\n{text}", "board.toml", "board")
