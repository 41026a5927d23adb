"""From a checkpoint to a bundle."""

from typing import TYPE_CHECKING

from rt3_tvm.codegen.options import CompileOptions
from rt3_tvm.lazy import offer

if TYPE_CHECKING:
    from rt3_tvm.codegen.compile import CompileReport, compile_checkpoint

__all__ = ["CompileOptions", "CompileReport", "compile_checkpoint"]
_COMPILE = "rt3_tvm.codegen.compile"
__getattr__ = offer(
    __name__,
    {"CompileReport": (_COMPILE, "CompileReport"), "compile_checkpoint": (_COMPILE, "compile_checkpoint")},
)
