"""Reading a Relax function backwards and forwards: which call computes a value, and what uses it."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.ir.expr import GenericConst

from rt3_tvm.schedules.layout import REAL
from rt3_tvm.transform.composites import static_shape


def constant(expr: relax.Expr) -> np.ndarray | None:
    """Return the value of a constant."""
    return np.asarray(expr.value.numpy()) if isinstance(expr, GenericConst) else None


def real(value: npt.ArrayLike) -> GenericConst:
    """Return a constant of the numbers that models compute in."""
    return relax.const(np.asarray(value, REAL.dtype))


def scalar(expr: relax.Expr) -> float | None:
    """Return the value of a constant of one element."""
    array = constant(expr)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def slice_of(begin: int, end: int, step: int, extent: int) -> tuple[int, int, int]:
    """Return where a slice of an axis begins, ends and how it steps, counted from its start and within it."""
    return slice(begin, end, step).indices(extent)


def slices_of(call: relax.Call) -> dict[int, tuple[int, int, int]]:
    """Return what a strided_slice takes of each axis that it names, see :func:`slice_of`."""
    shape = static_shape(call.args[0])
    axes, begins, ends = ([int(f.value) for f in call.args[i].fields] for i in (1, 2, 3))
    steps = [int(f.value) for f in call.args[4].fields] if len(call.args) > 4 else [1] * len(axes)
    parts = zip(axes, begins, ends, steps, strict=True)
    return {axis % len(shape): slice_of(begin, end, step, shape[axis]) for axis, begin, end, step in parts}


def bindings_of(func: relax.Function) -> Iterator[relax.Binding]:
    """Yield the bindings of a function in order."""
    for block in func.body.blocks:
        yield from block.bindings


class Graph:
    """A Relax function by its variables."""

    def __init__(self, func: relax.Function) -> None:
        self._values = relax.analysis.get_var2val(func)
        self._users: dict[relax.Var, list[relax.Var]] = {}
        for binding in bindings_of(func):
            for used in relax.analysis.free_vars(binding.value):
                self._users.setdefault(used, []).append(binding.var)
        self._result = func.body.body

    def call(self, expr: relax.Expr, *names: str) -> relax.Call | None:
        """Return the call of an operator that computes an expression; with ``names`` only of one of these operators."""
        value = self._values.get(expr) if isinstance(expr, relax.Var) else expr
        while isinstance(value, relax.Var):
            value = self._values.get(value)
        if not isinstance(value, relax.Call) or not hasattr(value.op, "name"):
            return None
        return value if not names or value.op.name.removeprefix("relax.") in names else None

    def field(self, expr: relax.Expr) -> tuple[relax.Expr, int] | None:
        """Return the tuple and the index of an expression that is a field of one; None where it is none."""
        value = self._values.get(expr) if isinstance(expr, relax.Var) else expr
        return (value.tuple_value, int(value.index)) if isinstance(value, relax.TupleGetItem) else None

    def only_user(self, var: relax.Var) -> relax.Var | None:
        """Return the variable whose value is the only one to use ``var``; None where more do, or the function returns it."""
        users = self._users.get(var, [])
        return users[0] if len(users) == 1 and not var.same_as(self._result) else None

    def scaled(self, expr: relax.Expr) -> tuple[relax.Expr, float] | None:
        """Return x and c of x * c, c * x or x / c with a constant of one element, of the same shape as x."""
        call = self.call(expr, "multiply", "divide")
        if call is None:
            return None
        pairs = [(call.args[0], call.args[1])]
        if call.op.name == "relax.multiply":
            pairs.append((call.args[1], call.args[0]))
        for x, c in pairs:
            value = scalar(c)
            if value and static_shape(x) == static_shape(expr):
                return x, value if call.op.name == "relax.multiply" else 1 / value
        return None
