"""Instructions of the kernels for ARM do not creep up: exact counts against those of docs/results/arm.md."""

import arm_counts
import pytest

from tests.arm.conftest import skips_without_tools

WRITTEN_FOR, WRITTEN = arm_counts.written()


@pytest.mark.parametrize("core", arm_counts.CORES)
def test_no_family_grew_by_more_than_3_percent(small_checkpoint, core):
    """Where it should have: python benchmarks/arm_counts.py --update-counts."""
    if arm_counts.versions() != WRITTEN_FOR:
        pytest.skip(f"the counts are of {WRITTEN_FOR}, this is {arm_counts.versions()}")
    with skips_without_tools():
        now = arm_counts.count(core, small_checkpoint)
    assert now.keys() == {name for name in WRITTEN if name.startswith(f"{core} ")}
    assert arm_counts.grown(WRITTEN, now) == []


def test_what_is_written_is_read(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{arm_counts.BEGIN}\nold\n{arm_counts.END}\nafter\n", encoding="utf-8")
    counts = {"A76 dense": {"attention": 1234567, "all kernels": 1234567}, "A76 V=4": {"matmul": 7, "all kernels": 7}}
    arm_counts.write(page, counts)
    assert arm_counts.written(page) == (arm_counts.versions(), counts)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text


def test_what_grew_is_said():
    before = {"A76 dense": {"attention": 1000, "layer_norm": 1000, "all kernels": 2000}}
    now = {"A76 dense": {"attention": 1030, "layer_norm": 1031, "rotary": 5, "all kernels": 2066}}
    assert arm_counts.grown(before, now) == [
        "A76 dense, layer_norm: 1,000 to 1,031",
        "A76 dense, all kernels: 2,000 to 2,066",
    ]
    assert arm_counts.changes(before, now)[:2] == [
        "A76 dense, rotary: 0 to 5 (new)",
        "A76 dense, all kernels: 2,000 to 2,066 (+3.3%)",
    ]
    assert arm_counts.grown(before, {"A76 dense": {"dense_linear": 1900, "all kernels": 1900}}) == []
