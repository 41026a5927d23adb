"""What a table was measured on."""

import platform
import re
import subprocess
from pathlib import Path


def machine() -> str:
    """Return CPU and commit, for the head of a table."""
    try:
        cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        cpu = None
    return f"{cpu[1] if cpu else platform.machine()}, commit {commit()}"


def commit() -> str:
    """Return the commit that is checked out, and whether something differs from it."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
