"""From a checkpoint to a bundle."""

from rt3_tvm.codegen.compile import CompileOptions, CompileReport, compile_checkpoint

__all__ = ["CompileOptions", "CompileReport", "compile_checkpoint"]
