"""What a bundle is linked with: the compiler for a core, the names that it exports, one version."""

import sys

import pytest
from elftools.elf.elffile import ELFFile

from rt3_tvm.codegen import link
from rt3_tvm.runtime.check import BUNDLE_FORMAT
from tests.runtime import synthetic


@pytest.mark.parametrize(
    ("triple", "core", "flags"),
    [
        ("armv7a-linux-gnueabihf", "cortex-a7", ["-mcpu=cortex_a7"]),
        ("armv7a-linux-gnueabihf", "cortex-a8", ["-mcpu=cortex_a8"]),
        ("armv7a-linux-gnueabihf", "cortex-a15", ["-mcpu=cortex_a15"]),
        ("aarch64-linux-gnu", "cortex-a76", []),  # the runtime must run where the kernels cannot, to say so
    ],
)
def test_zig_compiles_32_bit_arm_for_the_core_of_the_device(monkeypatch, triple, core, flags):
    monkeypatch.setattr(link.shutil, "which", lambda _: None)
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda _: True)
    command = link.choose_compiler(triple, None, "x86_64", core)
    assert command[:4] == [sys.executable, "-m", "ziglang", "cc"] and command[6:] == flags


def test_a_bundle_exports_what_the_header_declares(tmp_path):
    bundle = synthetic.build(tmp_path)
    with bundle.path.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym").iter_symbols()
        exported = {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF" and s["st_info"]["bind"] == "STB_GLOBAL"}
    own = {name for name in exported if not name.startswith("__tvm_ffi_")}
    assert own == set(link.exported_names()) and {"rt3_open", "rt3_profile", "rt3_check"} <= own
    assert f"#define RT3_API_VERSION {BUNDLE_FORMAT}\n" in (link.runtime_directory() / "rt3.h").read_text()
