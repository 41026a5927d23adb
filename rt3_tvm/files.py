"""Writing files whole or not at all."""

import os
import tempfile
from pathlib import Path

from rt3_tvm.errors import JobError


def write_text(path: Path, text: str) -> None:
    """Write a text file under another name beside it and rename it when it is whole."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise JobError(f"cannot write '{path}': {error.strerror or error}") from error
