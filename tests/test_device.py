"""Devices and frequencies: what is accepted, and what is said of the rest."""

import json
import re

import pytest
import tvm

from rt3_tvm import device
from rt3_tvm.cli.main import main
from rt3_tvm.device.toml_writer import to_toml
from rt3_tvm.errors import Rt3Error

GOOD = """
title = "board"
[[cluster]]
name = "cpu"
core = "cortex-a53"
cores = 4
target = { kind = "llvm", mtriple = "aarch64-linux-gnu", mcpu = "cortex-a53" }
lanes = 4
registers = 32
l1d_bytes = 32768
l2_bytes = 524288
opps = [[1400000000, 1.2], [1000000000, 1.0], [800000000, 0.9], [200000000, 0.8]]
"""


@pytest.mark.parametrize(
    ("text", "hz"), [("1.4GHz", 1.4e9), ("800MHz", 8e8), ("1000000000", 1e9), ("1e9", 1e9), (" 600 mhz ", 6e8)]
)
def test_frequencies(text, hz):
    assert device.parse_frequency(text) == hz


@pytest.mark.parametrize("text", ["", "fast", "1.4THz", "-1GHz", "0", "12"])
def test_bad_frequencies(text):
    with pytest.raises(Rt3Error, match=r"give it as 1\.4GHz"):
        device.parse_frequency(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((1e9,), "frequencies: 1 for 2 levels: give one for each level"),
        ((8e8, 1e9), "frequencies 800MHz,1GHz: give them from the highest to the lowest"),
        ((1.3e9, 1e9), "frequencies: cluster 'cpu' does not have 1.3GHz: its frequencies are 1.4GHz, 1GHz"),
    ],
)
def test_bad_frequency_lists(given, message):
    with pytest.raises(Rt3Error, match=message):
        device.level_frequencies(device.parse(GOOD, "board.toml", "board"), 2, given)


def test_levels_take_what_is_given_then_what_the_checkpoint_names_then_the_devices():
    board = device.parse(GOOD, "board.toml", "board")
    assert device.level_frequencies(board, 2, (1.4e9, 8e8), named=(1e9, 2e8)) == (1.4e9, 8e8)
    assert device.level_frequencies(board, 2, named=(1e9, 2e8)) == (1e9, 2e8)
    assert device.level_frequencies(board, 2, named=(0.0, 0.0)) == (1.4e9, 2e8)
    assert device.level_frequencies(board, 2, powered=(1e9, 8e8)) == (1e9, 8e8)
    assert device.level_frequencies(board, 2, (1.3e9, 1e9), labels=True) == (1.3e9, 1e9)
    with pytest.raises(Rt3Error, match="no power is known at 200MHz: 1GHz, 800MHz"):
        device.level_frequencies(board, 2, (1e9, 2e8), powered=(1e9, 8e8))
    with pytest.raises(Rt3Error, match=r"level 1 is for another device than 'board': give frequencies: .* 900MHz"):
        device.level_frequencies(board, 2, named=(1e9, 9e8))


def test_defaults_are_top_middle_and_lowest():
    board = device.parse(GOOD, "board.toml", "board")
    assert device.level_frequencies(board, 3) == (1.4e9, 8e8, 2e8)
    assert device.level_frequencies(board, 1) == (1.4e9,)
    with pytest.raises(Rt3Error, match="4 operating points"):
        device.level_frequencies(board, 5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "board"', "title =", "not TOML"),
        ("[[cluster]]", "[other]", r"unknown key 'other'"),
        ("[[cluster]]", "[cluster]", r"no \[\[cluster\]\]"),
        ("lanes = 4", "lanes = 0", "cluster 0: 'lanes' must be a number above 0"),
        ("lanes = 4", "lanes = 4.5", "'lanes' must be a whole number"),
        ("lanes = 4", "lanes = true", "'lanes' must be a number"),
        ("lanes = 4", "lanes = 4\npower_uw_per_mhz_v2 = 1e-10\nwatts = 2", "unknown key 'watts': choose from capacity"),
        ("lanes = 4", "lanes = 4\npower_uw_per_mhz_v2 = -3", "'power_uw_per_mhz_v2' must be a number above 0"),
        ("cores = 4", "", "'cores' must be"),
        ('name = "cpu"', "", "'name' is missing"),
        ('title = "board"', "title = 3", "'title' must be a text"),
        ('title = "board"', 'titel = "board"', "unknown key 'titel'"),
        ('kind = "llvm"', 'kind = "cuda"', "must be 'llvm'"),
        ('core = "cortex-a53"', 'core = "cortex-a533"', "core: unknown core 'cortex-a533': choose from .*cortex-a53,"),
        ('mcpu = "cortex-a53"', 'mcpu = "pentium"', "target.mcpu: unknown core 'pentium'"),
        ('mtriple = "aarch64-linux-gnu"', 'mtriple = "z80"', "unknown architecture 'z80': choose from aarch64"),
        ('mtriple = "aarch64-linux-gnu"', 'mtriple = "armv7a-linux-gnueabihf"', "needs four parts"),
        ("[1000000000, 1.0]", "[1500000000, 1.0]", "descend"),
        ("[1000000000, 1.0]", "[1400000000, 1.0]", "each once"),
        ("[1000000000, 1.0]", "[1000000000, 900.0]", r"opps\[1\] = .*900 V is outside"),
        ("[1000000000, 1.0]", "[1000, 1.0]", r"opps\[1\] = .*1000 Hz is outside"),
        ("[1000000000, 1.0]", '["x", 1.0]', r"opps\[1\] must be \[Hz, V\]"),
        ("opps = [[1400000000, 1.2]", "opps = [3", r"opps\[0\] must be"),
    ],
)
def test_bad_device_files_name_file_and_key(old, new, message):
    with pytest.raises(Rt3Error, match=message) as error:
        device.parse(GOOD.replace(old, new), "board.toml", "board")
    assert "board.toml" in str(error.value)


def test_unknown_devices_and_files():
    with pytest.raises(Rt3Error, match=r"unknown device 'rpi9': choose from hikey960, host, mt8183"):
        device.load("rpi9")
    with pytest.raises(Rt3Error, match="no such device file"):
        device.load("rpi9.toml")


SHIPPED = [name for name in device.names() if name != "host"]


def test_two_clusters_of_one_name():
    cluster = GOOD[GOOD.index("[[cluster]]") :]
    with pytest.raises(Rt3Error, match=r"board\.toml: two clusters have the name 'cpu'"):
        device.parse(GOOD + cluster, "board.toml", "board")


def test_sixteen_boards_come_with_the_package():
    assert len(SHIPPED) == 16
    xu3 = device.load("odroid-xu3")
    assert xu3.cluster.core == "cortex-a7" and xu3.cluster.opps[0].hz == 1.4e9
    assert [o.hz for c in xu3.clusters for o in c.opps if o.hz == 2e9] == [2e9]


@pytest.mark.parametrize("name", SHIPPED)
def test_boards_are_whole(name):
    board = device.load(name)
    assert board.source and board.cluster.opps
    for cluster in board.clusters:
        assert cluster.isa and cluster.target_dict()["mcpu"] == cluster.core
        assert (cluster.lanes, cluster.registers) == (4, 16 if cluster.isa.startswith("armv7") else 32)
        power = [o.hz * o.volts**2 for o in cluster.opps]
        assert power == sorted(power, reverse=True), "a higher clock does not draw less"


def test_board_figures_against_the_device_trees_they_are_of():
    """Facts read by hand in Linux: rk3399.dtsi, mt8183.dtsi, exynos5422-cpus.dtsi."""
    little = device.load("rk3399").cluster
    assert little.power_uw_per_mhz_v2 == 100 and little.capacity == 485
    assert device.load("mt8183").clusters[1].opps[0] == device.OperatingPoint(1.989e9, 1.05)
    assert device.load("odroid-xu4").clusters[1].power_uw_per_mhz_v2 == 310


@pytest.mark.parametrize("name", SHIPPED)
def test_toml_is_read_as_it_was_written_and_llvm_knows_the_cores(name):
    board = device.load(name)
    assert device.parse(to_toml(board), "board.toml", name) == board


def test_clusters_by_name():
    board = device.load("rk3588").with_cluster("big1")
    assert [c.name for c in board.clusters] == ["big1", "little", "big0"]
    with pytest.raises(Rt3Error, match="no cluster 'huge': choose from big0, big1, little"):
        board.with_cluster("huge")


def test_every_cluster_is_a_target_tag():
    clusters = {(n, c.core) for n in SHIPPED for c in device.load(n).clusters}
    assert len(device.tag_table()) == len(clusters)
    for tag in device.tag_table():
        target = tvm.target.Target(tag)
        assert target.kind.name == "llvm" and str(target.attrs["mcpu"]).endswith(tag.rsplit("-", 1)[1])


def fake_phone(root):
    """Two clusters: 2x A55 with supplies, 1x A76 whose frequencies are in time_in_state alone and whose cache is unknown."""

    def write(path, text):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")

    flags = "fp asimd evtstrm aes fphp asimdhp asimddp"
    cpus = [
        f"processor\t: {i}\nFeatures\t: {flags}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {part}\n"
        for i, part in enumerate(("0xd05", "0xd05", "0xd0b"))
    ]
    write("proc/cpuinfo", "\n".join(cpus) + "\nHardware\t: A phone")
    for cpu, related in enumerate(("0 1", "0 1", "2")):
        write(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/related_cpus", related)
    little = "sys/devices/system/cpu/cpu0"
    write(f"{little}/cpufreq/scaling_available_frequencies", "300000 1800000 576000")
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "32K"), ("1", "Instruction", "16K"), ("2", "Unified", "1M")]
    ):
        for key, value in (("level", level), ("type", kind), ("size", size)):
            write(f"{little}/cache/index{index}/{key}", value)
    for hz, uv in ((300000000, 550000), (576000000, 600000), (1800000000, 950000)):
        write(f"sys/kernel/debug/opp/cpu0/opp:{hz}/u_volt_target", str(uv))
    write("sys/devices/system/cpu/cpu2/cpufreq/stats/time_in_state", "500000 12\n2400000 3")


def test_probe_reads_a_phone(tmp_path, capsys):
    fake_phone(tmp_path)
    out = tmp_path / "phone.toml"
    assert main(["devices", "probe", "--root", str(tmp_path), "-o", str(out)]) == 0
    said = capsys.readouterr().err
    for what in ("cpu1': l1d_bytes", "cpu1': supplies of opps", "power_uw_per_mhz_v2"):
        assert what in said and what in out.read_text()
    little, big = device.load(str(out)).clusters
    assert (little.core, little.cores, little.l1d_bytes, little.l2_bytes) == ("cortex-a55", 2, 32768, 1 << 20)
    assert [(o.hz, o.volts) for o in little.opps] == [(1.8e9, 0.95), (5.76e8, 0.6), (3e8, 0.55)]
    assert little.target_dict()["mattr"] == ["+neon", "+fullfp16", "+dotprod"]
    assert (big.core, big.cores, big.l1d_bytes) == ("cortex-a76", 1, 0)
    assert [(o.hz, o.volts) for o in big.opps] == [(2.4e9, 0.0), (5e8, 0.0)]


def test_probe_of_this_machine_can_be_loaded(capsys):
    assert main(["devices", "probe"]) == 0
    found = device.parse(capsys.readouterr().out, "this.toml", "host")
    assert found.cluster == device.load("host").cluster


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "--root", "/nowhere"], r"'/nowhere/proc/cpuinfo' cannot be read: .*probe runs on Linux"),
        (["probe", "-o", "x.txt"], r"ends in \.toml"),
        (["show"], "no device: pass --device NAME"),
        (["show", "rpi9"], "unknown device 'rpi9'"),
        (["show", "rk3399", "--cluster", "huge"], "no cluster 'huge'"),
        (["show", "--device-file", "board.json"], r"ends in \.toml"),
    ],
)
def test_bad_device_commands_are_one_line(arguments, message, capsys):
    assert main(["devices", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_devices_are_shown(capsys):
    assert main(["devices"]) == 0 and main(["devices", "show", "odroid-xu3"]) == 0
    out = capsys.readouterr().out
    assert "pixel6" in out and "rt3/odroid-xu3-a7" in out and "published levels: 1.4GHz at 1.24 V" in out
    assert main(["devices", "show", "rk3399", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["clusters"][0]["opps"][-1] == [408000000.0, 0.825] and facts["clusters"][1]["tag"] == "rt3/rk3399-a72"
