"""Bundles from Python: switching, padding, bad input, several at once, `auto`, tvm-ffi."""

import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

import rt3_tvm
from rt3_tvm import load
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.runtime.check import read_metadata
from tests.conftest import TINY_BATCH, TINY_LENGTHS, reference


@pytest.fixture
def bundle(tiny_bundle):
    with load(tiny_bundle) as opened:
        yield opened


@pytest.mark.parametrize(
    ("hz", "level", "sure"),
    [
        (2e9, 0, True),
        (1.4e9, 0, True),
        (1.399e9, 1, True),
        (1.0e9, 1, True),
        (0.99e9, 2, True),
        (0.8e9, 2, True),
        (1e8, 2, False),
    ],
)
def test_frequency_takes_the_densest_level_that_holds(bundle, hz, level, sure):
    assert bundle.set_frequency(hz) is sure
    assert bundle.level == level


def test_levels_differ_and_are_described(bundle, rng):
    ids = rng.integers(0, 500, (1, 10))
    outputs = []
    for level in range(3):
        bundle.set_level(level)
        outputs.append(bundle(input_ids=ids)["last_hidden_state"])
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3 < np.abs(outputs[1] - outputs[2]).max()
    densities = [lv.density for lv in bundle.levels]
    assert densities == sorted(densities, reverse=True)
    assert bundle.metadata["lengths"] == list(TINY_LENGTHS)


def test_threads_do_not_change_a_bit(bundle, rng):
    ids = rng.integers(0, 500, (2, 33))
    assert bundle.max_threads == 3
    results = []
    for threads in (1, 2, 3, 1, 3):
        bundle.set_threads(threads)
        assert bundle.threads == threads
        for level in range(3):
            bundle.set_level(level)
            results.append((level, bundle(input_ids=ids)["last_hidden_state"]))
    for level, value in results:
        np.testing.assert_array_equal(value, results[level][1])


@pytest.mark.parametrize("threads", [0, -1, 4])
def test_threads_out_of_range(bundle, threads):
    with pytest.raises(Rt3Error, match=f"{threads} threads: this bundle was compiled for 1 to 3"):
        bundle.set_threads(threads)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 39, 40])
def test_every_length_is_padded_and_masked(tiny_checkpoint, bundle, rng, length):
    ids = rng.integers(0, 500, (1, length))
    got = bundle(input_ids=ids)
    want = reference(tiny_checkpoint, 0, input_ids=ids, attention_mask=np.ones_like(ids))
    for name in want:
        assert np.abs(got[name] - want[name]).max() < 2e-4


def test_int32_equals_int64_and_a_smaller_batch_equals_a_larger_one(bundle, rng):
    ids = rng.integers(0, 500, (TINY_BATCH, 11))
    both = bundle(input_ids=ids)["last_hidden_state"]
    np.testing.assert_array_equal(both, bundle(input_ids=ids.astype(np.int32))["last_hidden_state"])
    np.testing.assert_array_equal(both[:1], bundle(input_ids=ids[:1])["last_hidden_state"])
    np.testing.assert_array_equal(both[1:], bundle(input_ids=ids[1:])["last_hidden_state"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no inputs: give input_ids"),
        ({"input_ids": np.zeros((1, 4), np.float32)}, "dtype float32, expected int64 or int32"),
        ({"input_ids": np.zeros(4, np.int64)}, "rank 1, expected 2"),
        ({"input_ids": np.zeros((1, 41), np.int64)}, "length 41, this bundle takes 1 to 40"),
        ({"input_ids": np.zeros((1, 0), np.int64)}, "length 0"),
        ({"input_ids": np.zeros((3, 4), np.int64)}, "batch 3, this bundle takes 1 to 2"),
        ({"input_ids": np.array([[1, 500]])}, r"value 500 at position 1 is outside \[0, 500\)"),
        ({"input_ids": np.array([[-1, 5]])}, "value -1 at position 0"),
        (
            {"input_ids": np.zeros((1, 4), np.int64), "attention_mask": np.ones((1, 5), np.int64)},
            "differs from the other",
        ),
        ({"input_ids": np.zeros((1, 4), np.int64), "attention_mask": np.full((1, 4), 2)}, r"outside \[0, 2\)"),
        ({"attention_mask": np.ones((1, 4), np.int64)}, "input 'input_ids' is missing"),
        ({"ids": np.zeros((1, 4), np.int64)}, "no input 'ids'"),
    ],
)
def test_bad_inputs(bundle, inputs, message):
    with pytest.raises(Rt3Error, match=message):
        bundle(**inputs)
    bundle(input_ids=np.zeros((1, 4), np.int64))  # nothing is left locked


def test_bad_levels(bundle):
    with pytest.raises(Rt3Error, match="choose 0 to 2"):
        bundle.set_level(3)
    with pytest.raises(Rt3Error, match="not a frequency"):
        bundle.set_frequency(-1.0)
    assert bundle.level == 0


def test_truncated_foreign_and_missing_files(tiny_bundle, tmp_path):
    data = tiny_bundle.read_bytes()
    for keep in (10, 70, 5000, len(data) - 1):
        (tmp_path / "cut.so").write_bytes(data[:keep])
        with pytest.raises(Rt3Error, match=r"truncated|not an rt3 bundle"):
            load(tmp_path / "cut.so")
    (tmp_path / "text.so").write_text("hello")
    with pytest.raises(Rt3Error, match="not an rt3 bundle"):
        load(tmp_path / "text.so")
    with pytest.raises(Rt3Error, match="no such bundle"):
        load(tmp_path / "none.so")
    subprocess.run(["cc", "-shared", "-x", "c", "-", "-o", tmp_path / "other.so"], input=b"int x;", check=True)
    with pytest.raises(Rt3Error, match="no symbol rt3_open"):
        load(tmp_path / "other.so")


def test_two_bundles_in_one_process(tiny_bundle, tmp_path, rng):
    other = shutil.copy(tiny_bundle, tmp_path / "other.so")
    ids = rng.integers(0, 500, (1, 8))
    with load(tiny_bundle) as first, load(other) as second:
        first.set_level(0)
        second.set_level(2)
        a, b = first(input_ids=ids)["last_hidden_state"], second(input_ids=ids)["last_hidden_state"]
        assert (first.level, second.level) == (0, 2) and np.abs(a - b).max() > 1e-3
        first.set_level(2)
        np.testing.assert_array_equal(first(input_ids=ids)["last_hidden_state"], b)


def test_a_bundle_compiled_again_under_the_same_name_is_the_new_one(tiny_checkpoint, tiny_bundle, tmp_path):
    from rt3_tvm import CompileOptions, compile

    path = tmp_path / "same.so"
    shutil.copy(tiny_bundle, path)
    with load(path) as old:
        compile(tiny_checkpoint, path, CompileOptions(frequencies=(3e9, 2e9, 1e9), lengths=(8,)))
        with load(path) as new:
            assert (old.max_length, new.max_length) == (40, 8)
            old(input_ids=np.zeros((1, 40), np.int64))
    for _ in range(3):  # closed libraries leave nothing behind that a new one could be mistaken for
        shutil.copy(tiny_bundle, tmp_path / "copy.so")
        (tmp_path / "copy.so").replace(path)
        with load(path) as again:
            assert again.max_length == 40


def test_a_bundle_is_never_another_that_is_still_loaded(tiny_bundle, tiny_checkpoint, tmp_path):
    from rt3_tvm import CompileOptions, compile

    other = tmp_path / "other.so"
    compile(tiny_checkpoint, other, CompileOptions(lengths=(24,)))
    with load(tiny_bundle) as first:
        load(tiny_bundle).close()  # the library stays, under one more name
        with load(other) as m:
            assert (m.max_length, first.max_length) == (24, max(TINY_LENGTHS))


def test_threads_share_one_python_handle(bundle, rng):
    ids = rng.integers(0, 500, (1, 8))
    expected = []
    for level in range(3):
        bundle.set_level(level)
        expected.append(bundle(input_ids=ids)["last_hidden_state"])
    wrong = []

    def work(thread: int) -> None:
        for i in range(20):
            bundle.set_level((thread + i) % 3)
            got = bundle(input_ids=ids)["last_hidden_state"]
            if not any(np.array_equal(got, e) for e in expected):
                wrong.append((thread, i))

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


class FakeSysfs:
    def __init__(self, root, khz):
        self.file = root / "devices/system/cpu/cpufreq/policy0/scaling_cur_freq"
        self.file.parent.mkdir(parents=True)
        self.set(khz)

    def set(self, khz):
        self.file.write_text(f"{khz}\n")


NEVER_S, AT_ONCE_S = 1e9, 1e-9
"""Dwell times of which one has never passed and the other always has, however slow the machine is."""


@pytest.mark.parametrize(("dwell_s", "risen"), [(NEVER_S, (2, 2, 2)), (AT_ONCE_S, (2, 1, 0))])
def test_auto_follows_down_at_once_and_up_after_the_dwell(bundle, tmp_path, dwell_s, risen):
    sysfs = FakeSysfs(tmp_path, 1_400_000)

    def level_at(khz):
        sysfs.set(khz)
        bundle(input_ids=np.zeros((1, 4), np.int64))
        return bundle.level

    bundle.set_auto(tmp_path, dwell_s=dwell_s, poll_s=1e-9)
    assert (level_at(1_400_000), level_at(800_000)) == (0, 2)
    # 1 % above a level's frequency is less than the hysteresis.
    assert (level_at(1_010_000), level_at(1_100_000), level_at(1_500_000)) == risen
    bundle.set_level(1)  # leaves auto
    assert level_at(800_000) == 1


def test_auto_says_what_it_cannot_read(bundle, tmp_path):
    with pytest.raises(JobError, match=r"cannot read .*policy0/scaling_cur_freq: No such file"):
        bundle.set_auto(tmp_path)


def test_auto_takes_a_sparser_level_after_missed_deadlines(tiny_checkpoint, tmp_path):
    from rt3_tvm import CompileOptions, compile

    compile(
        tiny_checkpoint,
        tmp_path / "late.so",
        CompileOptions(frequencies=(3e9, 2e9, 1e9), lengths=(16,), deadline_s=1e-9),
    )
    FakeSysfs(tmp_path, 3_000_000)
    with load(tmp_path / "late.so") as late:
        late.set_auto(tmp_path, dwell_s=60.0, poll_s=1e-9)
        for _ in range(3):
            late(input_ids=np.zeros((1, 4), np.int64))
        assert late.level == 1


def test_metadata_is_read_without_loading(tiny_bundle):
    facts = read_metadata(tiny_bundle)
    assert facts["model"]["class"] == "BertModel" and facts["unmatched"] == []
    assert [len(m["levels"]) for m in facts["matrices"].values()] == [3] * 13


def test_a_matrix_with_two_kernels_has_one_density_a_level(tiny_checkpoint, tmp_path):
    """The 21 tiles of seven sequences are register blocks of four and a rest: a kernel for each."""
    options = rt3_tvm.CompileOptions(frequencies=(3e9, 2e9, 1e9), lengths=(48,), batch=7, verify=False)
    rt3_tvm.compile(tiny_checkpoint, tmp_path / "two.so", options)
    facts = read_metadata(tmp_path / "two.so")
    steps = [matrix for _, matrix, *_ in facts["variants"][0]["steps"] if matrix]
    assert len(steps) > len(set(steps))
    for name, matrix in facts["matrices"].items():
        want = [level.matrices[name].density for level in tiny_checkpoint.levels]
        assert [row["density"] for row in matrix["levels"]] == want


def test_ops_without_a_compiler(tiny_bundle, monkeypatch):
    from rt3_tvm.bench import peak
    from rt3_tvm.report.ops import measure_ops
    from rt3_tvm.report.summary import ops_table

    def none(*_args):
        raise Rt3Error("no C compiler found")

    peak.core_limits.cache_clear()
    monkeypatch.setattr(peak, "choose_compiler", none)
    rows = measure_ops(tiny_bundle, 1, 12)
    assert all(r.of_peak is None for r in rows) and "unknown" in str(list(ops_table(rows).columns[6].cells))


def test_profile_times_every_step(tiny_bundle, monkeypatch):
    """One time a step; in the table every step counts once, by its kernel, with what it computes and moves."""
    from rt3_tvm.bench import peak
    from rt3_tvm.report.ops import measure_ops
    from rt3_tvm.runtime import Bundle

    with load(tiny_bundle) as bundle:
        bundle.set_level(1)
        seconds = bundle.profile(input_ids=np.zeros((1, 12), np.int64))
        facts = bundle.metadata
    steps = next(v["steps"] for v in facts["variants"] if (v["level"], v["length"]) == (1, 16))
    assert len(seconds) == len(steps)
    monkeypatch.setattr(Bundle, "profile", lambda *_, **__: [2e-6] * len(steps))
    monkeypatch.setattr(peak, "core_limits", lambda: {"peak_gflops": 50.0})
    rows = measure_ops(tiny_bundle, 1, 12)
    assert {r.symbol for r in rows} == {facts["kernels"][kernel]["symbol"] for kernel, *_ in steps}
    for row in rows:
        own = [(flops, size) for kernel, _, flops, size in steps if facts["kernels"][kernel]["symbol"] == row.symbol]
        flops, size = map(sum, zip(*own, strict=True))
        assert row.calls == len(own) and row.share == pytest.approx(len(own) / len(steps))
        assert row.ms == pytest.approx(2e-3 * len(own)) and row.of_peak == pytest.approx(row.gflops / 50)
        assert row.gflops == pytest.approx(flops / (2e3 * len(own))) and row.mbytes == pytest.approx(size / 1e6)
        assert size > 0
    assert {r.family for r in rows if r.gflops} == {"pattern_linear", "few_token_linear", "attention", "layer_norm"}
    with pytest.raises(Rt3Error, match="takes 1 to 40"):
        measure_ops(tiny_bundle, 0, 41)


def test_running_needs_neither_torch_nor_tvm(tiny_bundle):
    code = (
        "import sys, numpy as np, rt3_tvm\n"
        f"m = rt3_tvm.load({str(tiny_bundle)!r})\n"
        "m(input_ids=np.zeros((1, 4), np.int64))\n"
        "assert not {'torch', 'tvm', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tvm_ffi_entry_points(tiny_bundle, bundle, rng):
    import tvm
    import tvm_ffi

    module = tvm_ffi.load_module(str(tiny_bundle))
    handle = module["open"]()
    assert module["levels"]() == 3
    module["set_level"](handle, 2)
    assert module["level"](handle) == 2
    assert module["set_frequency"](handle, 1.0e9) == 0 and module["level"](handle) == 1
    assert module["set_frequency"](handle, 1.0e6) == 1
    module["set_level"](handle, 1)
    bundle.set_level(1)
    ids = rng.integers(0, 500, (1, 9))
    want = bundle(input_ids=ids)
    arrays = [
        ids,
        np.ones_like(ids),
        np.zeros_like(ids),
        np.zeros((1, 9, 48), np.float32),
        np.zeros((1, 48), np.float32),
    ]
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    module["run"](handle, *tensors)
    np.testing.assert_array_equal(tensors[3].numpy(), want["last_hidden_state"])
    np.testing.assert_array_equal(tensors[4].numpy(), want["pooler_output"])
    left_out = tvm.runtime.tensor(np.zeros((1, 48), np.float32))
    module["run"](handle, tensors[0], None, None, None, left_out)
    np.testing.assert_array_equal(left_out.numpy(), want["pooler_output"])
    seconds = tvm.runtime.tensor(np.zeros(64))
    steps = module["profile"](handle, tensors[0], None, None, seconds)
    assert (
        steps == len(bundle.profile(input_ids=ids))
        and (seconds.numpy()[:steps] > 0).all()
        and not seconds.numpy()[steps:].any()
    )
    assert [module["axis"](3, d) for d in (-2, -1, 0, 1, 2)] == [0, 3, -1, -2, 48]
    for wrong in ((3, 3), (5, 0), (-1, 0), (0, -3)):
        with pytest.raises((ValueError, TypeError), match="axis"):
            module["axis"](*wrong)
    with pytest.raises(ValueError, match="room for 3 steps"):
        module["profile"](handle, tensors[0], None, None, tvm.runtime.tensor(np.zeros(3)))
    with pytest.raises(TypeError, match="profile"):
        module["profile"](handle, tensors[0], None, None, tensors[3])
    with pytest.raises(ValueError, match="'input_ids' is missing"):
        module["run"](handle, None, None, None, None, left_out)
    with pytest.raises(ValueError, match="choose 0 to 2"):
        module["set_level"](handle, 7)
    with pytest.raises(TypeError, match="run"):
        module["run"](handle, tensors[0])
    module["close"](handle)


def test_needed_libraries_and_exports(tiny_bundle):
    from elftools.elf.elffile import ELFFile

    with tiny_bundle.open("rb") as file:
        elf = ELFFile(file)
        needed = {t.needed for t in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
        exported = {
            s.name
            for s in elf.get_section_by_name(".dynsym").iter_symbols()
            if s["st_info"]["bind"] == "STB_GLOBAL" and s["st_shndx"] != "SHN_UNDEF"
        }
    assert {"rt3_open", "rt3_run"} < exported and any(n.startswith("libc.") for n in needed)
    assert all(n.startswith(("libc.", "libm.", "ld-linux")) for n in needed)
    assert all(n.startswith(("rt3_", "__tvm_ffi_")) for n in exported) and "rt3_bundle_tables" not in exported
