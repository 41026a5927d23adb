"""What each level multiplies: what was asked for, against what the core has."""

from fnmatch import fnmatchcase

from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.codegen.options import CompileOptions
from rt3_tvm.device import Device
from rt3_tvm.errors import Rt3Error
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import INT8, ElementType
from rt3_tvm.schedules.linear_plan import PLANNERS
from rt3_tvm.transform.context import ATTENTION


def level_elements(
    options: CompileOptions, checkpoint: Checkpoint, device: Device, cpu: CpuShape
) -> tuple[ElementType, ...]:
    """Return the element type of each level.

    Raises
    ------
    Rt3Error
        The core cannot multiply such numbers, there is not one for each level, or a glob is of no parameter.
    """
    levels, dtypes = len(checkpoint.levels), options.dtype
    if len(dtypes) not in (1, levels):
        raise Rt3Error(f"`dtype` {','.join(dtypes)}: give one, or one for each of the checkpoint's {levels} levels")
    known = [element.dtype for element in PLANNERS if element in cpu.elements]
    for dtype in dtypes:
        if dtype not in known:
            core = f"{device.cluster.core} of {device.name}"
            raise Rt3Error(f"`dtype` {dtype} is not for {core}: choose from {', '.join(known)}")
    if options.calibrate is not None and INT8.dtype not in dtypes:
        raise Rt3Error(f"`calibrate` is for int8, and `dtype` is {','.join(dtypes)}")
    for glob in options.keep_float:
        if not any(fnmatchcase(name, glob) for name in (*checkpoint.weights, ATTENTION)):
            raise Rt3Error(f"`keep_float` '{glob}': the model has no parameter of such a name")
    each = dtypes * levels if len(dtypes) == 1 else dtypes
    return tuple(map(ElementType.of, each))
