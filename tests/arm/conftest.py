"""What the ladder's tests share: the small model, and skipping where this machine lacks a tool."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import arm_counts
import pytest

from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.codegen.emulate import Unavailable
from rt3_tvm.errors import JobError, Rt3Error

MISSING = re.compile(r"not installed|no C compiler|no libraries of the target|takes no plugins")


@contextmanager
def skips_without_tools() -> Iterator[None]:
    """Skip where an error says that something has to be installed; any other error stays one."""
    try:
        yield
    except (JobError, Rt3Error, Unavailable) as error:
        if not MISSING.search(str(error)):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def small_checkpoint() -> Checkpoint:
    return arm_counts.small_checkpoint()
