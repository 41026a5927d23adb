"""A bundle whose content is not what was linked: found by `load`, by `rt3 inspect --check` and by `rt3_check`."""

import json
import os
import shutil
import struct
import subprocess

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from rt3_tvm import load
from rt3_tvm.cli.main import main
from rt3_tvm.codegen.metadata import replace_metadata
from rt3_tvm.errors import Rt3Error
from rt3_tvm.runtime.check import METADATA_SECTION, WEIGHTS_SECTION, check_bundle, read_metadata
from tests.runtime import synthetic
from tests.runtime.test_c_api import build, run

LEVELS = struct.pack("<3d", synthetic.HZ[1], 0.0, 0.5)
"""Level 1 as the table of the C runtime holds it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return synthetic.build(tmp_path_factory.mktemp("synthetic"))


def section(path, name):
    with path.open("rb") as file:
        found = ELFFile(file).get_section_by_name(name)
        return found["sh_offset"], found["sh_size"]


def flipped(path, tmp_path, position, bit=0):
    """Return a copy with one bit the other way."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    (tmp_path / "flipped.so").write_bytes(data)
    return tmp_path / "flipped.so"


def places(path):
    """Return where the parts are that a user's results depend on."""
    data = path.read_bytes()
    weights, size = section(path, WEIGHTS_SECTION)
    return {
        "first weight": weights + 3,
        "last weight": weights + size - 3,
        "level table": data.index(LEVELS) + 6,
        "code": section(path, ".text")[0] + 40,
        "steps": section(path, ".data.rel.ro")[0] + 17,
        "relocations": section(path, ".rela.dyn")[0] + 8,
        "metadata": section(path, METADATA_SECTION)[0] + 30,
        "checksums": section(path, ".rt3.checksums")[0] + 60,
        "program headers": 64 + 16,
    }


PLACES = [
    "first weight",
    "last weight",
    "level table",
    "code",
    "steps",
    "relocations",
    "metadata",
    "checksums",
    "program headers",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_is_found_before_the_bundle_is_loaded(whole, tmp_path, place, capsys):
    damaged = flipped(whole.path, tmp_path, places(whole.path)[place])
    with pytest.raises(Rt3Error, match=r"flipped\.so' (is damaged|is truncated)"):
        load(damaged)
    assert main(["inspect", "--check", str(damaged)]) == 2
    assert "flipped.so' is" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["first weight", "last weight", "level table", "code", "metadata", "checksums"])
def test_rt3_check_finds_what_was_loaded_damaged(whole, tmp_path, place):
    program = (
        "import ctypes, sys\n"
        "library = ctypes.CDLL(sys.argv[1])\n"
        "library.rt3_last_error.restype = ctypes.c_char_p\n"
        "print(library.rt3_check(), library.rt3_last_error().decode())\n"
    )

    def check(path):
        done = subprocess.run(["python3", "-c", program, path], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert check(whole.path) == "0"
    damaged = flipped(whole.path, tmp_path, places(whole.path)[place])
    assert check(damaged).startswith("-5 the bundle is damaged: the checksum of its ")


def test_a_sound_bundle_is_said_to_be(whole, capsys):
    assert main(["inspect", "--check", str(whole.path)]) == 0
    names = {part.name for part in check_bundle(whole.path)}
    assert f"{len(check_bundle(whole.path))} sections are as they were linked" in capsys.readouterr().out
    assert {WEIGHTS_SECTION, METADATA_SECTION, ".text", ".rodata", ".data.rel.ro", ".rela.dyn"} <= names


def test_a_stripped_bundle_is_whole(whole, tmp_path):
    stripped = shutil.copy(whole.path, tmp_path / "stripped.so")
    subprocess.run(["strip", stripped], check=True)
    assert stripped.stat().st_size < whole.path.stat().st_size
    ids = np.array([[1, 2, 10]])
    with load(stripped) as bundle:
        np.testing.assert_array_equal(bundle(input_ids=ids)["sum"], whole.reference(0, ids))


def set_in(facts, path, value):
    *parents, last = path
    for name in parents:
        facts = facts[name]
    if value is None:
        del facts[last]
    else:
        facts[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 99, "has bundle format 99"),
        (("levels", 1, "frequency_hz"), 2e9, "do not descend"),
        (("levels", 1, "frequency_hz"), "fast", r"levels\[1\].frequency_hz is 'fast', expected a number"),
        (("levels", 0, "density"), 1e300, r"density is 1e\+300, expected a number in \[0, 1\]"),
        (("levels", 0, "deadline_s"), -1.0, "deadline_s is -1.0"),
        (("levels", 0, "deadline_s"), float("nan"), "deadline_s is nan"),
        (("levels",), [], "expected a list of at least 1"),
        (("levels",), {}, r"levels is \{\}, expected a list"),
        (("batch",), 0, "batch is 0, expected an integer of at least 1"),
        (("batch",), True, "batch is True"),
        (("lengths",), [4, -9], r"lengths\[1\] is -9"),
        (("variants", 0, "level"), 7, r"variants\[0\] is of level 7"),
        (("variants", 0, "steps", 0, 0), 5, "calls a kernel that is not listed"),
        (("variants", 0, "steps", 0), [0], r"steps\[0\] is \[0\], expected a list of 4"),
        (("outputs",), None, "outputs is None"),
        (("matrices",), {"w": 1}, "metadata.matrices.w is 1, expected a table"),
        (("weight_sections", 0, "level"), 2, r"weight_sections\[0\] is of level 2 at 0"),
        (("weight_sections", 0, "bytes"), 64, "weight_sections end at 64, weights_bytes is 0"),
        (("weight_sections",), [], "weight_sections is .*, expected a list of at least 1"),
        (("target",), "x86", "target is 'x86', expected a table"),
    ],
)
def test_metadata_that_cannot_be_are_refused(whole, tmp_path, path, value, message):
    facts = read_metadata(whole.path)
    set_in(facts, path, value)
    changed = shutil.copy(whole.path, tmp_path / "changed.so")
    facts_size = section(changed, METADATA_SECTION)[1]
    assert len(json.dumps(facts)) < facts_size
    replace_metadata(changed, facts)
    for read in (load, read_metadata):
        with pytest.raises(Rt3Error, match=message):
            read(changed)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe", b"[" * 4000, b'"text"', b"", b"null", b"9" * 1500])
def test_metadata_that_are_no_table_are_refused(whole, tmp_path, text, monkeypatch):
    changed = shutil.copy(whole.path, tmp_path / "changed.so")
    monkeypatch.setattr("rt3_tvm.codegen.metadata.encode_metadata", lambda _: text)
    replace_metadata(changed, {})
    with pytest.raises(Rt3Error, match=r"changed\.so' is damaged: its metadata: "):
        load(changed)


def test_a_file_that_is_no_file_is_refused(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.so")
    with pytest.raises(Rt3Error, match="is no regular file"):
        load(tmp_path / "pipe.so")
    assert main(["inspect", str(tmp_path / "pipe.so")]) == 2
    assert "is no regular file" in capsys.readouterr().err


def test_loading_writes_nothing(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir("/proc")
    with load(whole.path) as bundle:
        assert bundle.max_length == max(synthetic.LENGTHS)


def test_kernels_take_as_many_arguments_as_they_have(tmp_path):
    many = synthetic.build(tmp_path / "many", "-fsanitize=address,undefined", count=40)
    source = tmp_path / "run.c"
    source.write_text(
        '#include <stdio.h>\n#include "rt3.h"\n'
        "int main(void) {\n  rt3_model *m;\n  int64_t ids[3] = {1, 2, 10};\n  float y[3];\n"
        '  rt3_tensor in = {"input_ids", RT3_INT64, 2, {1, 3}, ids, sizeof ids};\n'
        '  rt3_tensor out = {"sum", RT3_FLOAT32, 0, {0}, y, sizeof y};\n'
        "  if (rt3_open(&m) || rt3_run(m, &in, 1, &out, 1)) return 1;\n"
        '  printf("%g %g %g", y[0], y[1], y[2]);\n  rt3_close(m);\n  return 0;\n}\n'
    )
    build(source, many.path, tmp_path / "run", "cc", "-fsanitize=address,undefined")
    want = many.reference(0, np.array([1, 2, 10]))
    np.testing.assert_array_equal([float(v) for v in run(tmp_path / "run").split()], want)
