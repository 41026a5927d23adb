"""Fixtures of the C API's tests: compilers, and bundles whose runtime is built with a sanitizer."""

import pytest

from rt3_tvm import CompileOptions, compile
from tests.conftest import need_program


@pytest.fixture(scope="session")
def gxx() -> str:
    return need_program("g++", "install g++")


@pytest.fixture(scope="session", params=["address,undefined", "thread"])
def sanitized(request, tiny_checkpoint, tmp_path_factory):
    """A bundle whose C runtime is built with a sanitizer, and the flag."""
    flag = f"-fsanitize={request.param}"
    path = tmp_path_factory.mktemp("sanitized") / "tiny.so"
    frequencies = (1.4e9, 1.0e9, 0.8e9)
    options = CompileOptions(
        frequencies=frequencies,
        lengths=(16, 40),
        batch=2,
        threads=3,
        cross_compiler=f"cc -g {flag}",
        verify=False,  # this process has no sanitizer to load it with
    )
    compile(tiny_checkpoint, path, options)
    return path, flag
