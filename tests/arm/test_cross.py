"""The C++ app cross-compiled and run under qemu: results equal to the host's. Counts and numbers only, never times."""

import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rt3_tvm import CompileOptions, compile, load
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.codegen.link import runtime_directory
from tests.conftest import app_tokens

ROOT = Path(__file__).parent.parent.parent
CASES = {
    # device, qemu, CPU, GNU triple, zig target
    "aarch64-a53": (
        str(Path(__file__).parent / "cortex-a53.toml"),
        "aarch64",
        "cortex-a53",
        "aarch64-linux-gnu",
        "aarch64-linux-gnu.2.31",
    ),
    "aarch64-a76": (
        str(Path(__file__).parent / "cortex-a76.toml"),
        "aarch64",
        "cortex-a76",
        "aarch64-linux-gnu",
        "aarch64-linux-gnu.2.31",
    ),
    "odroid-xu3": ("odroid-xu3", "arm", "cortex-a7", "arm-linux-gnueabihf", "arm-linux-gnueabihf.2.31"),
}


def compilers(gnu: str, zig: str) -> tuple[str, str, str | None]:
    """Return the C and C++ compilers and the target's libraries for qemu, or skip."""
    sysroot = f"/usr/{gnu}"
    if shutil.which(f"{gnu}-g++"):
        return f"{gnu}-gcc", f"{gnu}-g++", sysroot
    if importlib.util.find_spec("ziglang"):
        # A static libc++ comes with zig; libc itself still has to be there for qemu.
        if not Path(sysroot).is_dir():
            pytest.skip(
                f"no libraries of {gnu} for qemu: install libc6-dev-{'arm64' if 'aarch64' in gnu else 'armhf'}-cross"
            )
        command = f"{sys.executable} -m ziglang"
        return f"{command} cc -target {zig}", f"{command} c++ -target {zig}", sysroot
    pytest.skip(f"no cross compiler: install g++-{gnu} or ziglang")


def qemu(machine: str) -> str:
    for name in (f"qemu-{machine}", f"qemu-{machine}-static"):
        if shutil.which(name):
            return name
    pytest.skip(f"qemu-{machine} is not installed: install qemu-user")


def build_app(checkpoint: Checkpoint, folder: Path, case: str) -> tuple[Path, list[str]]:
    """Return the C++ app over a bundle for the device of a case, and the command that runs it but for the CPU."""
    device, machine, _, gnu, zig = CASES[case]
    emulator = qemu(machine)
    cc, cxx, sysroot = compilers(gnu, zig)
    bundle = folder / "tiny.so"
    options = CompileOptions(device, (1.4e9, 1.0e9, 0.8e9), lengths=(16, 40), batch=2, threads=2, cross_compiler=cc)
    compile(checkpoint, bundle, options)
    app = folder / "app"
    command = [
        *shlex.split(cxx),
        "-std=c++17",
        "-O1",
        "-w",
        ROOT / "examples/app.cpp",
        f"-I{runtime_directory()}",
        bundle,
    ]
    subprocess.run([*command, "-Wl,-rpath,$ORIGIN", "-o", app], check=True, capture_output=True)
    return app, [emulator, "-L", sysroot or "/"]


@pytest.mark.parametrize("case", sorted(CASES))
def test_app_under_qemu_equals_the_host(tiny_checkpoint, tiny_bundle, tmp_path, case):
    app, command = build_app(tiny_checkpoint, tmp_path, case)
    # An instruction that this core lacks would end it with SIGILL.
    subprocess.run([*command, "-cpu", CASES[case][2], app, tmp_path / "arm.f32"], check=True, timeout=300)
    got = np.fromfile(tmp_path / "arm.f32", np.float32).reshape(3, 20, 48)
    with load(tiny_bundle) as host:
        for level in range(3):
            host.set_level(level)
            want = host(input_ids=np.array([app_tokens(500)]))["last_hidden_state"][0]
            assert np.abs(got[level] - want).max() < 1e-3


def test_a_bundle_for_a_newer_core_is_refused(tiny_checkpoint, tmp_path):
    app, command = build_app(tiny_checkpoint, tmp_path, "aarch64-a76")
    done = subprocess.run(
        [*command, "-cpu", "cortex-a53", app], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode > 0 and "this CPU lacks fullfp16, rdm, dotprod, which" in done.stderr
