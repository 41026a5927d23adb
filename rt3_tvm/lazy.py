"""Packages that offer names from their modules without importing them: torch and TVM take seconds."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def offer(package: str, names: Mapping[str, tuple[str, str]]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package: each of its names is an attribute of a module that is imported on first use."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module, attribute = names[name]
        return getattr(import_module(module), attribute)

    return get
