"""Phase 6, last: buffers of kernels that do not fit a thread's stack become results that nobody reads, in the workspace."""

import math
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import IRModule, relax, s_tir, tirx

from rt3_tvm.schedules import TASKS_ATTR
from rt3_tvm.schedules.cpu import KERNEL_STACK_BYTES
from rt3_tvm.transform.composites import static_shape

Shape = tuple[int, ...]


@tvm.transform.module_pass(opt_level=0, name="SpillToWorkspace")
class SpillToWorkspace:
    """Move the largest buffers of each kernel until the others fit the stack together."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Rewrite kernels, and their calls in ``main``."""
        kernels = {var: func for var, func in mod.functions_items() if isinstance(func, tirx.PrimFunc)}
        spilled = {var: found for var, func in kernels.items() if (found := _spilled(func))}
        return _with_more_results(mod, spilled) if spilled else mod


@dataclass(frozen=True, eq=False)
class _Spilled:
    """A buffer, and the loop of tasks around it, if any: then every task gets a part of its own."""

    buffer: tirx.Var
    task: tirx.For | None

    @property
    def shape(self) -> Shape:
        own = static_shape(self.buffer)
        return own if self.task is None else (int(self.task.extent), *own)

    @property
    def bytes(self) -> int:
        dtype = tvm_ffi.dtype(str(self.buffer.ty.dtype))
        return dtype.bits // 8 * dtype.lanes * math.prod(static_shape(self.buffer))


def _buffers(stmt: tirx.Stmt, task: tirx.For | None) -> list[_Spilled]:
    found: list[_Spilled] = []
    tvm_ffi.structural_walk(
        stmt, (s_tir.SBlock, lambda block: found.extend(_Spilled(b, task) for b in block.alloc_buffers))
    )
    return found


def _spilled(func: tirx.PrimFunc) -> list[_Spilled]:
    """Return the buffers that must leave the stack, the largest first."""
    tasks: list[tirx.For] = []
    tvm_ffi.structural_walk(func.body, (tirx.For, lambda f: tasks.append(f) if TASKS_ATTR in f.annotations else None))
    inside = [b for task in tasks for b in _buffers(task, task)]
    outside = [b for b in _buffers(func.body, None) if not any(b.buffer.same_as(i.buffer) for i in inside)]
    left, spilled = sorted([*inside, *outside], key=lambda b: -b.bytes), []
    while sum(b.bytes for b in left) > KERNEL_STACK_BYTES:
        spilled.append(left.pop(0))
    return spilled


def _with_parameters(func: tirx.PrimFunc, spilled: list[_Spilled]) -> tirx.PrimFunc:
    """Return the kernel with the buffers behind its other parameters; a task sees its part under the buffer's name."""
    parameters, parts = [], []
    for s in spilled:
        dtype = str(s.buffer.ty.dtype)
        if s.task is None:
            parameters.append(s.buffer)
            continue
        parameters.append(tirx.decl_buffer(s.shape, dtype, f"{s.buffer.name}_of_tasks"))
        offset = tirx.Var(f"{s.buffer.name}_offset", "int32")
        part = tirx.decl_buffer(static_shape(s.buffer), dtype, s.buffer.name, elem_offset=offset, offset_factor=1)
        whole = [tvm.ir.Range(0, extent) for extent in static_shape(s.buffer)]
        region = tirx.BufferRegion(parameters[-1], [tvm.ir.Range.from_min_extent(s.task.loop_var, 1), *whole])
        parts.append((s.buffer, s_tir.MatchBufferRegion(part, region)))

    def rename(var: tirx.Var) -> tirx.Var:
        return next((match.buffer for buffer, match in parts if buffer.same_as(var)), var)

    def rewrite(block: s_tir.SBlock) -> s_tir.SBlock:
        moved = [*(s.buffer for s in spilled), *(match.buffer for _, match in parts)]
        kept = [b for b in block.alloc_buffers if not any(map(b.same_as, moved))]
        if len(kept) == len(block.alloc_buffers):
            return block
        here = [match for _, match in parts if any(map(match.buffer.same_as, block.alloc_buffers))]
        return s_tir.SBlock(
            block.iter_vars,
            block.reads,
            [*block.writes, *(match.source for match in here)],
            block.name_hint,
            block.body,
            block.init,
            kept,
            [*block.match_buffers, *here],
            block.annotations,
        )

    body = tvm_ffi.structural_map(func.body, [(tirx.Var, rename), (s_tir.SBlock, rewrite)])
    return tirx.PrimFunc([*func.params, *parameters], body, func.ret_type, func.attrs)


def _with_more_results(mod: IRModule, spilled: dict[tvm.ir.GlobalVar, list[_Spilled]]) -> IRModule:
    """Return the module with spilled kernels under new variables, which have their types, and calls to match."""

    @relax.expr_functor.mutator
    class Caller(relax.PyExprMutator):
        def visit_call_(self, call: relax.Call) -> relax.Expr:
            call = super().visit_call_(call)
            moved = spilled.get(call.args[0]) if getattr(call.op, "name", "") == "relax.call_tir" else None
            if moved is None:
                return call
            kernel = self.builder_.add_func(_with_parameters(mod[call.args[0]], moved), call.args[0].name_hint)
            (ty,) = call.ty_args
            own = list(ty.fields) if isinstance(ty, relax.TupleType) else [ty]
            more = [relax.TensorType(s.shape, str(s.buffer.ty.dtype)) for s in moved]
            result = relax.call_tir(kernel, call.args[1], [*own, *more])
            return result if isinstance(ty, relax.TupleType) else relax.TupleGetItem(self.builder_.emit(result), 0)

    caller = Caller(mod)
    caller.builder_.update_func(mod.get_global_var("main"), caller.visit_expr(mod["main"]))
    result = caller.builder_.get()
    return IRModule({var: func for var, func in result.functions_items() if var not in spilled})
