"""The C API from C and C++: contract, sanitizers, threads, memory, what a switch takes."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rt3_tvm import load
from rt3_tvm.codegen.link import runtime_directory
from rt3_tvm.codegen.sdk import write_sdk
from tests.conftest import app_tokens, need_program

ROOT = Path(__file__).parent.parent.parent
STRICT = ("-Wall", "-Wextra", "-Werror", "-O1", "-g")


def build(source: Path, bundle: Path, program: Path, compiler: str, *flags: str) -> None:
    """Compile a program that links a bundle."""
    standard = "-std=c++17" if source.suffix == ".cpp" else "-std=c11"
    command = [
        compiler,
        standard,
        *STRICT,
        *flags,
        source,
        f"-I{runtime_directory()}",
        bundle,
        f"-Wl,-rpath,{bundle.parent}",
    ]
    done = subprocess.run([*command, "-pthread", "-o", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_cpp_app_agrees_with_python(tiny_bundle, tmp_path, gxx):
    build(ROOT / "examples/app.cpp", tiny_bundle, tmp_path / "app", gxx)
    printed = run(tmp_path / "app", tmp_path / "results.f32")
    assert printed.count("GHz: level") == 3
    got = np.fromfile(tmp_path / "results.f32", np.float32).reshape(3, 1, 20, 48)
    with load(tiny_bundle) as bundle:
        for level in range(3):
            bundle.set_level(level)
            np.testing.assert_array_equal(
                got[level], bundle(input_ids=np.array([app_tokens(500)]))["last_hidden_state"]
            )


def test_contract(tiny_bundle, tmp_path):
    build(ROOT / "tests/runtime/contract.c", tiny_bundle, tmp_path / "contract", "cc")
    run(tmp_path / "contract")


def test_governor_reaches_every_level_from_every_other_and_does_not_flutter(tmp_path):
    sources = [ROOT / "tests/runtime/governor.c", runtime_directory() / "governor.c"]
    flags = ["-std=c11", *STRICT, "-fsanitize=address,undefined", f"-I{runtime_directory()}"]
    run("cc", *flags, *sources, "-lm", "-o", tmp_path / "governor")
    run(tmp_path / "governor")


def test_contract_app_and_threads_under_sanitizers(sanitized, tmp_path, gxx):
    bundle, flag = sanitized
    sources = ("tests/runtime/threads.cpp",) if "thread" in flag else ("tests/runtime/contract.c", "examples/app.cpp")
    for source in sources:
        program = tmp_path / Path(source).stem
        build(ROOT / source, bundle, program, gxx if source.endswith("cpp") else "cc", flag)
        run(program)


def test_threads_run_and_switch_at_once(tiny_bundle, tmp_path, gxx):
    build(ROOT / "tests/runtime/threads.cpp", tiny_bundle, tmp_path / "threads", gxx)
    assert "wrong 0" in run(tmp_path / "threads")


def test_peak_memory_is_bundle_plus_little(tiny_bundle, tmp_path):
    build(ROOT / "benchmarks/memory.c", tiny_bundle, tmp_path / "memory", "cc")
    facts = json.loads(run(tmp_path / "memory"))
    assert facts["levels"] == 3
    assert facts["peak_rss_bytes"] <= tiny_bundle.stat().st_size + 64 * 2**20


def test_a_switch_is_a_few_instructions_and_no_system_call(tiny_bundle, tmp_path):
    """27 and 39 instructions on x86-64: far from a lock, a copy or a search, and far below the bar of 1 microsecond."""
    build(ROOT / "tests/runtime/switch_steps.c", tiny_bundle, tmp_path / "steps", "cc")
    done = subprocess.run([tmp_path / "steps"], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode == 77:
        pytest.skip("this system lets no process trace its child")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts.keys() == {"set_level", "set_frequency"}
    for name, row in facts.items():
        assert 0 < row["instructions"] < 100 and row["system_calls"] == 0, name


def test_switch_benchmark_prints_its_table(tiny_bundle, tmp_path):
    build(ROOT / "benchmarks/switch.c", tiny_bundle, tmp_path / "switch", "cc")
    facts = json.loads(run(tmp_path / "switch"))
    assert facts["calls"] == 10**6 and [row["level"] for row in facts["levels"]] == [0, 1, 2]
    for name in ("set_frequency", "set_level"):
        row = facts[name]
        assert 0 <= row["median_ns"] <= row["p99_ns"] <= row["worst_ns"], name


def test_sdk_works_with_pkg_config_and_cmake(tiny_bundle, tmp_path, gxx):
    folder = tmp_path / "sdk"
    write_sdk(tiny_bundle, folder)
    pc = (folder / "lib/pkgconfig/tiny.pc").read_text().replace("${pcfiledir}", str(folder / "lib/pkgconfig"))
    prefix = re.search(r"prefix=(.*)", pc)[1]
    flags = [
        f.replace("${prefix}", prefix) for key in ("Cflags", "Libs") for f in re.search(rf"{key}: (.*)", pc)[1].split()
    ]
    run(gxx, "-std=c++17", ROOT / "examples/app.cpp", *flags, "-o", tmp_path / "app")
    assert "level 2" in run(tmp_path / "app")
    cmake = need_program("cmake", "install cmake")
    project = tmp_path / "project"
    project.mkdir()
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(app CXX)\nset(CMAKE_CXX_STANDARD 17)\nfind_package(rt3 CONFIG REQUIRED)\n"
        f"add_executable(app {ROOT}/examples/app.cpp)\ntarget_link_libraries(app rt3::tiny)\n"
    )
    run(cmake, "-S", project, "-B", project / "build", f"-DCMAKE_PREFIX_PATH={folder}")
    run(cmake, "--build", project / "build")
    assert "level 2" in run(project / "build" / "app")
