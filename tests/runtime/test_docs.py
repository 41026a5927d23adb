"""The program of docs/c-api.md compiles without a warning and runs."""

import re
import subprocess
from pathlib import Path

from rt3_tvm import load
from rt3_tvm.codegen.link import runtime_directory

PAGE = Path(__file__).parent.parent.parent / "docs/c-api.md"


def test_the_program_of_the_page(tmp_path, tiny_bundle):
    source = re.search(r"```c\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "app.c").write_text(source[1])
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{runtime_directory()}", f"-Wl,-rpath,{tiny_bundle.parent}"]
    subprocess.run(["cc", *flags, "app.c", tiny_bundle, "-o", "app"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "app"], capture_output=True, text=True, check=True)
    with load(tiny_bundle) as bundle:
        bundle.set_frequency(1.0e9)
        (name, values), *_ = bundle(input_ids=[list(range(8))]).items()
        assert done.stdout == f"level {bundle.level}, {name}: {values.reshape(-1)[0]:.4f}\n"
