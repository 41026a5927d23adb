"""A Python for 64-bit ARM that runs under qemu-user: ``python benchmarks/arm_sysroot.py [FOLDER]``; it downloads 150 MB.

Debian's arm64 packages of Python, unpacked and not installed, with the wheels of ONNX Runtime and TVM in the versions that this
environment has, and what TVM's RPC server imports. ``FOLDER/python-arm`` is the command. It needs apt, dpkg-deb and qemu-aarch64;
nothing outside of the folder changes. A program that starts others by ``sys.executable``, as the server does, has to set that to
the command.
"""

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import platformdirs

SUITE = "http://deb.debian.org/debian bookworm main"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ("python3", "libstdc++6", "libgomp1")
PYTHON = "3.11"
"""Of the suite."""
SAME_AS_HERE = ("onnxruntime", "numpy", "apache-tvm", "apache-tvm-ffi")
OF_RPC = ("cloudpickle", "tornado", "psutil")
GLIBC = (17, 24, 27, 28, 34)
"""Versions 2.N that the wheels may name; Debian 12 has 2.36."""
WITHOUT_DOT = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
WITH_DOT = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


@dataclass(frozen=True)
class EmulatedCore:
    """What qemu calls a core of ARM's, the number of its part, and its features as Linux names them."""

    name: str
    part: str
    features: str

    @property
    def cpuinfo(self) -> str:
        """What Linux says of a machine with one: ONNX Runtime chooses its kernels by it, and dies of that of no ARM."""
        facts = {
            "processor": "0",
            "BogoMIPS": "48.00",
            "Features": self.features,
            "CPU implementer": "0x41",
            "CPU architecture": "8",
            "CPU variant": "0x3",
            "CPU part": self.part,
            "CPU revision": "1",
        }
        return "".join(f"{name}\t: {value}\n" for name, value in facts.items()) + "\n"


CORES = {
    "A53": EmulatedCore("cortex-a53", "0xd03", WITHOUT_DOT),
    "A55": EmulatedCore("cortex-a55", "0xd05", WITH_DOT),
    "A76": EmulatedCore("cortex-a76", "0xd0b", WITH_DOT),
}
OF_PYTHON = CORES["A76"]


def default_folder() -> Path:
    """Return where the sysroot is looked for."""
    return Path(platformdirs.user_cache_dir("rt3-tvm", appauthor=False)) / "arm-python"


def make(folder: Path) -> Path:
    """Make the sysroot in a folder and return the command that is its Python."""
    emulator = shutil.which("qemu-aarch64")
    if emulator is None or shutil.which("apt-get") is None or not Path(KEYS).is_file():
        sys.exit("a Debian with qemu-user, apt and debian-archive-keyring is needed")
    root = folder.absolute() / "root"
    root.mkdir(parents=True, exist_ok=True)
    for package in _packages(folder.absolute() / "apt"):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    _install(root / "usr/local/lib" / f"python{PYTHON}" / "dist-packages")
    _describe(OF_PYTHON, root)
    command = folder.absolute() / "python-arm"
    python = root / "usr/bin" / f"python{PYTHON}"
    command.write_text(
        f'#!/bin/sh\nexec {emulator} -cpu {OF_PYTHON.name} $QEMU_OPTIONS -L "{root}" "{python}" "$@"\n',
        encoding="utf-8",
    )
    command.chmod(0o755)
    return command


def _describe(core: EmulatedCore, root: Path) -> None:
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/cpuinfo").write_text(core.cpuinfo, encoding="ascii")


def root_of(core: str, folder: Path) -> Path:
    """Return the root of a sysroot as it looks on a core of CORES: a folder of links beside it."""
    root = folder.absolute() / "cores" / core
    _describe(CORES[core], root)
    for part in (folder.absolute() / "root").iterdir():
        link = root / part.name
        if part.name != "proc" and not link.exists():
            link.symlink_to(part)
    return root


def _packages(folder: Path) -> list[Path]:
    """Download the packages and all that they depend on, with lists and settings of their own."""
    archives, lists = folder / "archives", folder / "lists"
    for part in (archives, lists):
        (part / "partial").mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "sources").write_text(f"deb [arch=arm64 signed-by={KEYS}] {SUITE}\n", encoding="ascii")
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "Dir::State::status": folder / "status",
        "Dir::State::lists": lists,
        "Dir::Cache::archives": archives,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Dir::Etc::sourcelist": folder / "sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "Debug::NoLocking": "true",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    subprocess.run(["apt-get", *options, "--quiet", "update"], check=True)
    subprocess.run(["apt-get", *options, "--quiet", "--yes", "--download-only", "install", *PACKAGES], check=True)
    return sorted(archives.glob("*.deb"))


def _install(site: Path) -> None:
    """Unpack the wheels for ARM into a folder."""
    platforms = [word for n in GLIBC for word in ("--platform", f"manylinux_2_{n}_aarch64")]
    which = ["--implementation", "cp", "--python-version", PYTHON, "--only-binary=:all:", *platforms]
    wanted = [f"{name}=={version(name)}" for name in SAME_AS_HERE]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--upgrade", *which, "--target", site]
    subprocess.run([*command, *wanted, *OF_RPC], check=True)


def main() -> None:
    """Make it, and show that it runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder(), help="default %(default)s")
    command = make(parser.parse_args().folder)
    code = "import platform, onnxruntime; print('ONNX Runtime', onnxruntime.__version__, 'on', platform.machine())"
    subprocess.run([command, "-c", code], check=True)
    print(command)


if __name__ == "__main__":
    main()
