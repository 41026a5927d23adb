"""A bundle on a CPU that lacks what it was compiled for: refused in one line, not an illegal instruction."""

import platform
import re
from pathlib import Path

import pytest

from rt3_tvm import CompileOptions, compile, load
from rt3_tvm.codegen.cpu_features import AARCH64, ARM, FEATURES, X86, required_features
from rt3_tvm.errors import Rt3Error
from rt3_tvm.runtime.check import read_metadata

KERNEL_NAMES = {"avxvnni": "avx_vnni", "avx512fp16": "avx512_fp16", "avx512vnni": "avx512_vnni", "avx512f": "avx512f"}
"""Linux's names in /proc/cpuinfo of features that some x86 of today lacks, newest first."""


def absent_feature() -> str:
    """Return an x86 feature that this machine lacks, or skip."""
    if platform.machine() != "x86_64":
        pytest.skip("the features of this machine are read from an x86's /proc/cpuinfo")
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    absent = [name for name, flag in KERNEL_NAMES.items() if flag not in flags]
    if not absent:
        pytest.skip(f"this CPU has all of {', '.join(KERNEL_NAMES)}")
    return absent[0]


def test_a_bundle_for_a_better_cpu_is_refused(tiny_checkpoint, tmp_path):
    feature = absent_feature()
    (tmp_path / "board.toml").write_text(
        'title = "a board"\nsource = "none"\n[[cluster]]\nname = "cpu"\ncore = "x86-64-v3"\ncores = 1\nlanes = 8\n'
        "registers = 16\nopps = [[1400000000], [1000000000], [800000000]]\n"
        f'target = {{ kind = "llvm", mtriple = "x86_64-linux-gnu", mcpu = "x86-64-v3", mattr = ["+{feature}"] }}\n'
    )
    path = tmp_path / "better.so"
    compile(tiny_checkpoint, path, CompileOptions(device=str(tmp_path / "board.toml"), lengths=(8,)))
    assert feature in read_metadata(path)["cpu_features"]
    with pytest.raises(Rt3Error, match=rf"better\.so': this CPU lacks {feature}, which the bundle was compiled for"):
        load(path)


def test_a_bundle_says_which_features_are_checked(tiny_bundle):
    facts = read_metadata(tiny_bundle)
    assert facts["cpu_features"] == sorted(required_features(facts["target"]))


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ({"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"}, set()),
        ({"mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}, {"avx2", "fma", "bmi2", "lzcnt", "f16c"}),
        ({"mtriple": "x86_64-linux-gnu", "mcpu": "skylake-avx512"}, {"avx512f", "avx512bw", "avx512vl"}),
        ({"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a53"}, {"neon"}),
        ({"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"}, {"neon", "dotprod", "fullfp16"}),
        ({"mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-v1"}, {"sve", "i8mm", "bf16", "dotprod"}),
        ({"mtriple": "armv7a-linux-gnueabihf", "mcpu": "cortex-a7", "mattr": ["+neon"]}, {"neon", "vfp4", "hwdiv-arm"}),
    ],
)
def test_what_a_target_implies_is_asked_for(target, wanted):
    found = set(required_features({"kind": "llvm", **target}))
    assert wanted <= found <= set(FEATURES[target["mtriple"].split("-")[0]])
    if target["mcpu"] == "cortex-a53":
        assert not {"dotprod", "fullfp16", "sve"} & found
    if target["mcpu"] == "haswell":
        assert not {f for f in found if f.startswith("avx512")}


def test_a_feature_that_is_switched_off_is_not_asked_for():
    target = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4", "mattr": ["-avx512vnni"]}
    found = required_features(target)
    assert "avx512vnni" not in found and "avx512f" in found


@pytest.mark.parametrize("table", [X86, AARCH64, ARM])
def test_no_bit_stands_for_two_features(table):
    bits = [bit for rows in table.values() for bit in rows]
    assert len(bits) == len(set(bits))
