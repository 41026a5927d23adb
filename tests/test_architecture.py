"""The rooms of the project and which way their imports go."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room may import from itself and from rooms that stand before it; `schedules` is the table the compiler draws on.
ORDER = [
    "errors",
    "files",
    "timing",
    "pattern",
    "device",
    "transformer_lm",
    "model",
    "export",
    "checkpoint",
    "prune",
    "frontend",
    "schedules",
    "transform",
    "runtime",
    "codegen",
    "hardware",
    "tasks",
    "search",
    "report",
    "cli",
]
PUBLIC = {"rt3_tvm", "rt3_tvm._plugin"}


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports at any depth, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{a.name}" for a in node.names} if node.module == "rt3_tvm" else {node.module}
    return found


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "rt3_tvm" and len(parts) > 1 and parts[1] in ORDER else None


def sources() -> list[Path]:
    return [*(ROOT / "rt3_tvm").rglob("*.py"), *(ROOT / "schedules").glob("*.py")]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "schedules":
        own = "schedules"
    elif len(relative.parts) == 2:
        own = relative.stem
    else:
        own = relative.parts[1]
    if own not in ORDER:
        return
    for module in imports(path):
        other = room(module)
        if other is not None:
            assert ORDER.index(other) <= ORDER.index(own), f"{relative} imports {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "rt3_tvm/runtime").rglob("*.py")), ids=lambda p: p.name)
def test_runtime_needs_neither_torch_nor_the_compiler(path):
    heavy = {m.split(".")[0] for m in imports(path)} & {"torch", "tvm", "tvm_ffi", "transformers"}
    assert not heavy
