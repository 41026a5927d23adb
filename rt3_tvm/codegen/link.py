"""Linking a bundle with any C compiler: the host's, a cross gcc, zig, the NDK's clang."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

from rt3_tvm.c_compiler import native_compiler, run_compiler
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.runtime.checksums import seal

C_FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
LINK_FLAGS = ("-shared", "-Wl,--as-needed", "-Wl,--no-undefined", "-Wl,-z,relro,-z,now", "-Wl,-z,noexecstack")
SOURCES = (
    "tensors.c",
    "levels.c",
    "handle.c",
    "run.c",
    "pool.c",
    "tvm_ffi.c",
    "governor.c",
    "cpufreq.c",
    "cpu.c",
    "check.c",
    "error.c",
)

# GNU triple and zig target of the architectures that a device may name, and whether zig needs the core: it has no vector
# registers for the least 32-bit ARM, and one core has instructions that another lacks.
CROSS = {
    "aarch64": ("aarch64-linux-gnu", "aarch64-linux-gnu.2.31", False),
    "armv7a": ("arm-linux-gnueabihf", "arm-linux-gnueabihf.2.31", True),
    "x86_64": ("x86_64-linux-gnu", "x86_64-linux-gnu.2.31", False),
}


def runtime_directory() -> Path:
    """Return the folder of the C runtime and its headers."""
    return Path(str(resources.files("rt3_tvm.runtime.c")))


def exported_names() -> list[str]:
    """Return the functions that ``rt3.h`` declares: what a bundle exports, beside its entry points for tvm-ffi."""
    header = (runtime_directory() / "rt3.h").read_text(encoding="utf-8")
    return re.findall(r"^RT3_API .*?(rt3_\w+)\(", header, re.MULTILINE)


def choose_compiler(triple: str, given: str | None, host_machine: str, core: str = "") -> list[str]:
    """Return the command of the C compiler for a target triple, and for LLVM's name of a core where that makes a difference.

    A command that is given is taken as it is. Else the host's compiler for the host, and for other architectures the GNU
    cross compiler, then zig from PyPI.
    """
    if given:
        command = shlex.split(given)
        if not command or shutil.which(command[0]) is None:
            raise Rt3Error(f"cross compiler '{given}': no such program")
        return command
    arch = triple.split("-", 1)[0]
    if arch == host_machine:
        native = native_compiler()
        if native is None:
            raise Rt3Error("no C compiler found: install gcc; or give `cross_compiler`")
        return native
    gnu, zig, needs_core = CROSS.get(arch, ("", "", False))
    if gnu and shutil.which(f"{gnu}-gcc"):
        return [f"{gnu}-gcc"]
    if zig and importlib.util.find_spec("ziglang"):
        flags = [f"-mcpu={core.replace('-', '_')}"] if needs_core and core else []
        return [sys.executable, "-m", "ziglang", "cc", "-target", zig, *flags]
    raise Rt3Error(
        f"no C compiler for {triple}: install gcc-{gnu or arch}, or pip install 'rt3-tvm[cross]'; or give `cross_compiler`"
    )


def compiler_version(command: list[str]) -> str:
    """Return the first line in which a compiler names itself; empty when it does not."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise JobError(f"cannot run {command[0]}: {error.strerror}") from error
    return done.stdout.partition("\n")[0]


def link_bundle(
    command: list[str], folder: Path, objects: list[str], output: str, soname: str, limits: Mapping[str, int]
) -> None:
    """Compile the runtime and the tables in ``folder`` and link them with the kernels.

    ``limits``: what the runtime's arrays are sized by, ``RT3_MAX_THREADS`` and the limits of the tables.
    """
    import tvm_ffi

    exports = "".join(f"    {name};\n" for name in (*exported_names(), "__tvm_ffi_*"))
    (folder / "exports.map").write_text(f"{{\n  global:\n{exports}  local: *;\n}};\n", encoding="utf-8")
    for name in (*SOURCES, "rt3.h", "rt3_internal.h"):
        shutil.copyfile(runtime_directory() / name, folder / name)
    includes = ["-I.", *(f"-isystem{path}" for path in tvm_ffi.libinfo.include_paths())]
    compile_flags = [*C_FLAGS, *includes, *(f"-D{name}={value}" for name, value in limits.items())]
    sources = ["weights.S", "tables.c", *SOURCES]  # the slow ones first
    compiled = [f"{Path(source).stem}.o" for source in sources]

    def compile_one(source: str, target: str) -> None:
        run_compiler(command, [*compile_flags, "-c", source, "-o", target], folder)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, compiled))
    libraries = ["-lm", *(("-pthread",) if limits["RT3_MAX_THREADS"] > 1 else ())]
    flags = [*LINK_FLAGS, "-Wl,--version-script=exports.map", f"-Wl,-soname,{soname}"]
    run_compiler(command, [*flags, "-o", output, *compiled, *objects, *libraries], folder)
    seal(folder / output)
