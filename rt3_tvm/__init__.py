"""RT3 on Apache TVM: Transformers that switch their sparsity with the CPU frequency.

The public API. Heavy imports (torch, TVM) happen on first use, so that running a bundle needs neither.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from rt3_tvm.lazy import offer

if TYPE_CHECKING:
    from rt3_tvm.checkpoint import Checkpoint
    from rt3_tvm.codegen import CompileOptions
    from rt3_tvm.codegen import compile_checkpoint as compile
    from rt3_tvm.energy.comparison import SimulateOptions
    from rt3_tvm.energy.comparison import compare as simulate
    from rt3_tvm.prune import PruneOptions
    from rt3_tvm.prune import prune_one_shot as prune
    from rt3_tvm.runtime import load
    from rt3_tvm.search import SearchOptions, search

__version__ = "0.1.0"
_PUBLIC = {
    "Checkpoint": ("rt3_tvm.checkpoint", "Checkpoint"),
    "CompileOptions": ("rt3_tvm.codegen", "CompileOptions"),
    "PruneOptions": ("rt3_tvm.prune", "PruneOptions"),
    "SearchOptions": ("rt3_tvm.search", "SearchOptions"),
    "SimulateOptions": ("rt3_tvm.energy.comparison", "SimulateOptions"),
    "compile": ("rt3_tvm.codegen", "compile_checkpoint"),
    "load": ("rt3_tvm.runtime", "load"),
    "prune": ("rt3_tvm.prune", "prune_one_shot"),
    "search": ("rt3_tvm.search", "search"),
    "simulate": ("rt3_tvm.energy.comparison", "compare"),
}
__all__ = [
    "Checkpoint",
    "CompileOptions",
    "PruneOptions",
    "SearchOptions",
    "SimulateOptions",
    "compile",
    "load",
    "prune",
    "search",
    "simulate",
]


__getattr__ = offer(__name__, _PUBLIC)


class _Package(ModuleType):
    """Keeps ``rt3_tvm.prune`` the function although a sub-package has its name: importing that would overwrite it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
if "tvm" in sys.modules:  # else `import tvm` runs the hook itself
    from rt3_tvm import _plugin

    _plugin.register()
