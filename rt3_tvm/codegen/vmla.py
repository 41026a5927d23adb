"""Multiply-adds by lane for 32-bit ARM: ``vmla.f32 q, q, d[lane]``, where the fused ``vfma.f32`` wants a ``vdup`` a weight.

LLVM multiplies by lane only where it may not fuse, or in functions that are to be as small as they can be (``UseFPVMLx`` in its
ARMPredicates.td). TVM lets it fuse everywhere, and no attribute of a PrimFunc becomes one of LLVM's. So what is to be small is
written into the text of the module, behind LLVM's passes over it: all that still asks is how instructions are chosen.
"""

import os
import re

import tvm
import tvm_ffi

_OF_KERNELS = re.compile(r'^(attributes #\d+ = \{)(.* "target-cpu"=)', re.MULTILINE)


def multiplied_by_lane(module: tvm.runtime.Module) -> tvm.runtime.Module:
    """Return LLVM's module with all of its functions to be small; by way of memory, as :func:`write_object` does it."""
    text, groups = _OF_KERNELS.subn(r"\1 minsize\2", module.inspect_source("ll"))
    assert groups, "functions of a module have a target"
    load = tvm_ffi.get_global_func("ffi.Module.load_from_file.ll")
    with os.fdopen(os.memfd_create("rt3-module"), "w") as memory:
        memory.write(text)
        memory.flush()
        return load(f"/proc/self/fd/{memory.fileno()}", "ll")
