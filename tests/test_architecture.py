"""The rooms of the project and which way their imports go."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room may import from itself and from rooms that stand before it: down the data flow, and what any program may use first.
# So the search stands on models of latency and power, not on the compiler, and running a bundle needs next to nothing.
ORDER = [
    "lazy",
    "errors",
    "c_compiler",
    "rt3",
    "files",
    "schema",
    "timing",
    "runtime",
    "pattern",
    "device",
    "options",
    "transformer_lm",
    "model",
    "export",
    "trials",
    "checkpoint_format",
    "checkpoint",
    "prune",
    "energy",
    "tasks",
    "search",
    "frontend",
    "schedules",
    "transform",
    "codegen",
    "bench",
    "tune",
    "report",
    "cli",
]
DATA = {"targets", "tuning_logs"}
"""Rooms without code."""
PUBLIC = {"__init__", "_plugin"}
"""Leaves of the package itself: they import what they offer when it is asked for."""


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


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "schedules":
        return "schedules"
    return relative.stem if len(relative.parts) == 2 else relative.parts[1]


def sources(*rooms: str) -> list[Path]:
    """Return the Python files, of these rooms or of all; the folder's own, not those behind its relative links."""
    found = [*(ROOT / "rt3_tvm").rglob("*.py"), *(ROOT / "schedules").rglob("*.py")]
    own = [p for p in found if not any(parent.is_symlink() for parent in p.parents if parent != ROOT)]
    return sorted(p for p in own if not rooms or room_of(p) in rooms)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_room_has_its_place():
    folders = {p.parent.name for p in (ROOT / "rt3_tvm").glob("*/__init__.py")}
    files = {p.stem for p in (ROOT / "rt3_tvm").glob("*.py")}
    assert folders | files == set(ORDER) | DATA | PUBLIC


@pytest.mark.parametrize("path", sources(*ORDER), ids=name_of)
def test_imports_go_one_way(path):
    own = room_of(path)
    for module in imports(path):
        other = room(module)
        assert other is None or ORDER.index(other) <= ORDER.index(own), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", sources(*ORDER[: ORDER.index("runtime") + 1]), ids=name_of)
def test_runtime_needs_neither_torch_nor_the_compiler(path):
    heavy = {m.split(".")[0] for m in imports(path)} & {"torch", "tvm", "tvm_ffi", "transformers"}
    assert not heavy


@pytest.mark.parametrize("path", sources("energy", "tasks", "search"), ids=name_of)
def test_search_does_not_stand_on_the_compiler(path):
    assert not {m.split(".")[0] for m in imports(path)} & {"tvm", "tvm_ffi"}
