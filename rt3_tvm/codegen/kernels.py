"""Kernels as plain C functions: collected over all variants, equal ones once, compiled to one object."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import IRModule, tirx
from tvm.ir import PointerType, PrimType

from rt3_tvm.schedules import KERNEL_ATTR

C_CALLING_CONVENTION = 1
"""Any explicit calling convention keeps TVM from wrapping the function into its packed interface."""


@dataclass(frozen=True)
class Kernel:
    """One compiled function: its C symbol, its family and how many pointers it takes."""

    symbol: str
    family: str
    arguments: int


@dataclass
class KernelTable:
    """All kernels of a bundle."""

    kernels: list[Kernel] = field(default_factory=list)
    functions: list[tirx.PrimFunc] = field(default_factory=list)
    _by_hash: dict[int, list[int]] = field(default_factory=dict)

    def index(self, func: tirx.PrimFunc) -> int:
        """Return the index of a kernel, adding it when no equal one is there."""
        family = str(func.attrs[KERNEL_ATTR])
        bare = func.without_attr("global_symbol") if "global_symbol" in func.attrs else func
        candidates = self._by_hash.setdefault(tvm_ffi.structural_hash(bare), [])
        for i in candidates:
            if tvm_ffi.structural_equal(self.functions[i], bare):
                return i
        candidates.append(len(self.kernels))
        self.kernels.append(Kernel(f"rt3_k{len(self.kernels)}_{family}", family, len(func.params)))
        self.functions.append(bare)
        return len(self.kernels) - 1

    def module(self) -> IRModule:
        """Return the module of all kernels with C signatures."""
        pairs = zip(self.kernels, self.functions, strict=True)
        return IRModule({k.symbol: with_c_signature(f, k.symbol) for k, f in pairs})

    def compile(self, target: dict[str, Any], path: Path) -> None:
        """Compile all kernels to an object file."""
        built = tvm.compile(self.module(), target=tvm.target.Target(target))
        built.mod.write_to_file(str(path), "o")


def with_c_signature(func: tirx.PrimFunc, symbol: str) -> tirx.PrimFunc:
    """Return a kernel whose parameters are plain pointers, exported under a C symbol.

    TVM 0.27 wants a declaration of each buffer on its pointer, and the device attributes that it adds to packed functions
    only.
    """
    pointers, declarations = [], []
    for buffer in func.params:
        pointer = tirx.Var(f"{buffer.name}_ptr", PointerType(PrimType(str(buffer.ty.dtype)), "global"))
        pointers.append(pointer)
        declarations.append(tirx.DeclBuffer(buffer, data=pointer))
    node, zero, cpu = tirx.const(0, "int32"), tirx.const(0, "int32"), tirx.const(1, "int32")
    body = tirx.SeqStmt([*declarations, func.body])
    body = tirx.AttrStmt(node, "device_type", cpu, tirx.AttrStmt(node, "device_id", zero, body))
    plain = tirx.PrimFunc(pointers, body, ret_type=None)
    return plain.with_attrs(
        {"s_tir": True, "tirx.noalias": True, "global_symbol": symbol, "calling_conv": C_CALLING_CONVENTION}
    )
