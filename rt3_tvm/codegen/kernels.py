"""Kernels as plain C functions: collected over all variants, equal ones once, compiled to one object."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import tvm
import tvm_ffi
from tvm import IRModule, tirx
from tvm.ir import PointerType, PrimType
from tvm.tirx.build import codegen_build
from tvm.tirx.compilation_pipeline import get_tir_pipeline

from rt3_tvm.codegen import cache
from rt3_tvm.codegen.by_lane import LoadByLane
from rt3_tvm.codegen.portable import ARM_32, architecture, for_target
from rt3_tvm.codegen.vmla import multiplied_by_lane
from rt3_tvm.schedules import BY_LANE_ATTR, KERNEL_ATTR, NAME_ATTR, SOURCE_ATTR, TASKS_ATTR
from rt3_tvm.schedules.cpu import KERNEL_STACK_BYTES
from rt3_tvm.schedules.linear_plan import MODELLED

C_CALLING_CONVENTION = 1
"""Any explicit calling convention keeps TVM from wrapping the function into its packed interface."""


@tirx.transform.prim_func_pass(opt_level=0, name="KeepOnStack")
class KeepOnStack:
    """Keep small buffers where LLVM can turn them into registers: from 1 KiB on TVM would take them from a heap."""

    def transform_function(self, func: tirx.PrimFunc, _mod: IRModule, _ctx: tvm.transform.PassContext) -> tirx.PrimFunc:
        """Annotate the allocations."""

        def annotate(stmt: tirx.AllocBuffer) -> tirx.AllocBuffer:
            ty = stmt.buffer.ty
            dtype = tvm_ffi.dtype(str(ty.dtype))
            size = dtype.bits // 8 * dtype.lanes
            for extent in ty.shape:
                size *= int(extent)
            assert size <= KERNEL_STACK_BYTES, f"{stmt.buffer.name} of {size} bytes must be an argument of the kernel"
            return tirx.AllocBuffer(
                stmt.buffer, {**dict(stmt.annotations), "disable_lower_builtin": tirx.const(True, "bool")}
            )

        return func.with_body(tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, annotate)))


@dataclass(frozen=True)
class Kernel:
    """One compiled function: its C symbol, its family, how many pointers it takes, and the tasks that threads can share.

    It takes the pointers and then the first task and the one behind the last, as int32. ``source``: where its plan is from.
    """

    symbol: str
    family: str
    arguments: int
    tasks: int
    source: str = MODELLED


@dataclass
class KernelTable:
    """All kernels of a bundle."""

    kernels: list[Kernel] = field(default_factory=list)
    functions: list[tirx.PrimFunc] = field(default_factory=list)
    _lowered: IRModule | None = None
    _lowering: Lock = field(default_factory=Lock)
    _by_hash: dict[int, list[int]] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)

    def index(self, func: tirx.PrimFunc) -> int:
        """Return the index of a kernel, adding it when no equal one is there."""
        family = str(func.attrs[KERNEL_ATTR])
        bare = func
        for attr in ("global_symbol", SOURCE_ATTR):  # of no account for what it computes
            bare = bare.without_attr(attr) if attr in bare.attrs else bare
        candidates = self._by_hash.setdefault(tvm_ffi.structural_hash(bare), [])
        for i in candidates:
            if tvm_ffi.structural_equal(self.functions[i], bare):
                return i
        self._lowered = None
        candidates.append(len(self.kernels))
        source = str(func.attrs.get(SOURCE_ATTR, MODELLED))
        self.kernels.append(Kernel(self._symbol(func), family, len(func.params), task_count(func), source))
        self.functions.append(bare)
        return len(self.kernels) - 1

    def _symbol(self, func: tirx.PrimFunc) -> str:
        """Return the name of a kernel: that of its plan, else its family, with a number where others are called so too."""
        name = str(func.attrs.get(NAME_ATTR, func.attrs[KERNEL_ATTR]))
        number = self._names[name] = self._names.get(name, 0) + 1
        return name if number == 1 else f"{name}_{number}"

    def module(self) -> IRModule:
        """Return the module of all kernels with C signatures."""
        pairs = zip(self.kernels, self.functions, strict=True)
        return IRModule({k.symbol: with_c_signature(f, k.symbol) for k, f in pairs})

    def compile(self, target: dict[str, Any], path: Path, use_cache: bool = False) -> None:
        """Compile all kernels to an object file, or take the one that was made of equal kernels."""
        key = ""
        if use_cache:
            key = cache.key_of(kernels=self.module().script(show_meta=True), target=target, tvm=tvm.__version__)
            if cache.fetch(key, path):
                return
        write_object(machine_code(self.lowered(), target), path)
        if use_cache:
            cache.store(key, path)

    def lowered(self) -> IRModule:
        """Return the module as LLVM's code generator takes it, made once for all targets, whichever thread asks first."""
        with self._lowering:
            if self._lowered is None:
                self._lowered = lower(self.module())
            return self._lowered


def lower(module: IRModule) -> IRModule:
    """Return a module of C functions behind all passes that ask nothing of a target but that LLVM compiles for it.

    LLVM finds common subexpressions, TVM's own would hide what LoadByLane looks for.
    """
    by_lane = any(BY_LANE_ATTR in func.attrs for _, func in module.functions_items())
    passes, _, _ = get_tir_pipeline("s_tir")
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": by_lane}):
        bound = tirx.transform.BindTarget(_alone({"kind": "llvm"}))(module)
        return tvm.transform.Sequential([passes, LoadByLane(), KeepOnStack()])(bound)


def machine_code(lowered: IRModule, target: Mapping[str, Any]) -> tvm.runtime.Module:
    """Return a lowered module compiled for a target."""
    native = for_target(lowered, target)
    bound = IRModule(
        {name: func.with_attr("target", tvm.target.Target(dict(target))) for name, func in native.functions_items()}
    )
    _, final_passes, _ = get_tir_pipeline("s_tir")
    built = codegen_build(final_passes()(bound), _alone(target))
    return multiplied_by_lane(built) if architecture(target) == ARM_32 else built


def _alone(target: Mapping[str, Any]) -> tvm.target.Target:
    """Return a target that is its own host."""
    alone = tvm.target.Target(dict(target))
    return alone.with_host(alone)


def write_object(module: tvm.runtime.Module, path: Path) -> None:
    """Write the object file of a module: LLVM to memory, because it ends the process where it cannot write."""
    with open(os.memfd_create("rt3-object"), "w+b") as memory:  # noqa: PTH123
        module.write_to_file(f"/proc/self/fd/{memory.fileno()}", "o")
        memory.seek(0)
        with path.open("wb") as file:
            shutil.copyfileobj(memory, file)


def task_count(func: tirx.PrimFunc) -> int:
    """Return the iterations of the loop that threads share; 1 where there is none."""
    extents: list[int] = []

    def collect(loop: tirx.For) -> None:
        if TASKS_ATTR in loop.annotations:
            extents.append(int(loop.extent))

    tvm_ffi.structural_walk(func.body, (tirx.For, collect))
    assert len(extents) <= 1, "a kernel has one loop of tasks"
    return extents[0] if extents else 1


def with_c_signature(func: tirx.PrimFunc, symbol: str) -> tirx.PrimFunc:
    """Return a kernel whose parameters are plain pointers and a range of tasks, exported under a C symbol.

    TVM 0.27 wants a declaration of each buffer on its pointer, and the device attributes that it adds to packed functions
    only.
    """
    pointers, declarations = [], []
    for buffer in func.params:
        pointer = tirx.Var(f"{buffer.name}_ptr", PointerType(PrimType(str(buffer.ty.dtype)), "global"))
        pointers.append(pointer)
        declarations.append(tirx.DeclBuffer(buffer, data=pointer))
    first, last = tirx.Var("first", "int32"), tirx.Var("last", "int32")

    def restrict(loop: tirx.For) -> tirx.For:
        if TASKS_ATTR not in loop.annotations:
            return loop
        dtype = str(loop.loop_var.ty.dtype)
        return tirx.For(loop.loop_var, first.astype(dtype), (last - first).astype(dtype), loop.kind, loop.body)

    node, zero, cpu = tirx.const(0, "int32"), tirx.const(0, "int32"), tirx.const(1, "int32")
    body = tirx.SeqStmt([*declarations, tvm_ffi.structural_map(func.body, (tirx.For, restrict))])
    body = tirx.AttrStmt(node, "device_type", cpu, tirx.AttrStmt(node, "device_id", zero, body))
    plain = tirx.PrimFunc([*pointers, first, last], body, ret_type=None)
    if BY_LANE_ATTR in func.attrs:
        plain = plain.with_attr(BY_LANE_ATTR, func.attrs[BY_LANE_ATTR])
    return plain.with_attrs(
        {"s_tir": True, "tirx.noalias": True, "global_symbol": symbol, "calling_conv": C_CALLING_CONVENTION}
    )
