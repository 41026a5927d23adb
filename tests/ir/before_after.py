"""What a pass makes of a small module, against what it should be, both written by hand."""

import tvm
from tvm import IRModule, relax, tirx
from tvm.ir import assert_structural_equal
from tvm_ffi import structural_map


def applied(passes, mod: IRModule) -> IRModule:
    """Return what passes make of a module, which must stay what it was."""
    given = mod.clone()
    after = tvm.transform.Sequential([*passes])(mod)
    assert_structural_equal(mod, given)
    return after


def main_of(mod: IRModule, name: str) -> IRModule:
    """Return a module of one of the functions alone, as its ``main``."""
    return IRModule({"main": mod[name].with_attr("global_symbol", "main")})


def check_pair(passes, mod: IRModule) -> None:
    """Check that passes make the function ``expected`` of ``before``."""
    assert_structural_equal(applied(passes, main_of(mod, "before")), main_of(mod, "expected"))


def check_unchanged(passes, mod: IRModule) -> None:
    """Check that passes leave ``main`` as it is."""
    assert_structural_equal(applied(passes, mod), mod)


class Kernels:
    """Kernels by name, for the TVMScript of a function that calls them."""

    def __init__(self, **kernels: tirx.PrimFunc) -> None:
        self._builder = relax.BlockBuilder()
        for name, func in kernels.items():
            setattr(self, name, self._builder.add_func(func, name))

    def module(self, main: relax.Function) -> IRModule:
        """Return a module of the kernels and of a function that calls them, as its ``main``."""
        kernels = dict(self._builder.get().functions_items())
        return IRModule({**kernels, "main": main.with_attr("global_symbol", "main")})


def named_by_composite(mod: IRModule) -> IRModule:
    """Return a module whose composites are called what they are; TVM names them after all their operators."""
    composites = {v: str(f.attrs["Composite"]) for v, f in mod.functions_items() if "Composite" in (f.attrs or {})}
    names = {v: tvm.ir.GlobalVar(name.removeprefix("rt3.")) for v, name in composites.items()}
    assert len({v.name_hint for v in names.values()}) == len(names), "two composites of one kind"

    def renamed(var: tvm.ir.GlobalVar) -> tvm.ir.GlobalVar:
        return names.get(var, var)

    functions = mod.functions_items()
    return IRModule({renamed(v): structural_map(f, [(tvm.ir.GlobalVar, renamed)]) for v, f in functions})
