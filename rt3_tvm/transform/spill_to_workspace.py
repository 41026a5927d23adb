"""Phase 6, last: buffers of kernels that do not fit a thread's stack become results that nobody reads, in the workspace."""

import math
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import IRModule, relax, s_tir, tirx

from rt3_tvm.schedules import TASKS_ATTR
from rt3_tvm.schedules.cpu import KERNEL_STACK_BYTES
from rt3_tvm.schedules.tasks import of_tasks
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


@dataclass(frozen=True, eq=False)
class _Part:
    """What a task sees of a buffer of all tasks: under the buffer's name, and by an axis of the block that had the buffer."""

    buffer: tirx.Var
    whole: tirx.Var
    match: s_tir.MatchBufferRegion
    axis: tirx.IterVar
    task: tirx.Var


def _part(spilled: _Spilled, task: tirx.For) -> _Part:
    """Return the part of a task, in a buffer of all of them."""
    own, name, dtype = spilled.buffer, spilled.buffer.name, str(spilled.buffer.ty.dtype)
    whole = tirx.decl_buffer(spilled.shape, dtype, of_tasks(name), layout=None)
    offset = tirx.Var(f"{name}_offset", "int32")
    part = tirx.decl_buffer(static_shape(own), dtype, name, elem_offset=offset, offset_factor=1, layout=None)
    axis = tirx.IterVar(tvm.ir.Range(0, task.extent), f"{name}_task", tirx.IterVar.DataPar)
    extents = [tvm.ir.Range(0, extent) for extent in static_shape(own)]
    region = tirx.BufferRegion(whole, [tvm.ir.Range.from_min_extent(axis.var, 1), *extents])
    return _Part(own, whole, s_tir.MatchBufferRegion(part, region), axis, task.loop_var)


def _with_parameters(func: tirx.PrimFunc, spilled: list[_Spilled]) -> tirx.PrimFunc:
    """Return the kernel with the buffers behind its other parameters."""
    parts = [_part(s, s.task) for s in spilled if s.task is not None]
    wholes = iter(part.whole for part in parts)
    parameters = [s.buffer if s.task is None else next(wholes) for s in spilled]

    def rename(var: tirx.Var) -> tirx.Var:
        return next((part.match.buffer for part in parts if part.buffer.same_as(var)), var)

    def rewrite(realize: s_tir.SBlockRealize) -> s_tir.SBlockRealize:
        block = realize.block
        moved = [*(s.buffer for s in spilled), *(part.match.buffer for part in parts)]
        kept = [b for b in block.alloc_buffers if not any(map(b.same_as, moved))]
        if len(kept) == len(block.alloc_buffers):
            return realize
        here = [part for part in parts if any(map(part.match.buffer.same_as, block.alloc_buffers))]
        block = s_tir.SBlock(
            [*block.iter_vars, *(part.axis for part in here)],
            block.reads,
            [*block.writes, *(part.match.source for part in here)],
            block.name_hint,
            block.body,
            block.init,
            kept,
            [*block.match_buffers, *(part.match for part in here)],
            block.annotations,
        )
        values = [*realize.iter_values, *(part.task for part in here)]
        return s_tir.SBlockRealize(values, realize.predicate, block)

    body = tvm_ffi.structural_map(func.body, [(tirx.Var, rename), (s_tir.SBlockRealize, rewrite)])
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
