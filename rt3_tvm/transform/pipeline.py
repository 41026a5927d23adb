"""The pipeline from an imported model to scheduled kernels, phase by phase."""

from pathlib import Path

import tvm
from tvm import IRModule

from rt3_tvm.transform.annotate_sparsity import AnnotateSparsity
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.fuse_composites import fuse_composites_passes
from rt3_tvm.transform.legalize import legalize_passes
from rt3_tvm.transform.schedule_kernels import ScheduleKernels
from rt3_tvm.transform.simplify import simplify_passes
from rt3_tvm.transform.spill_to_workspace import SpillToWorkspace
from rt3_tvm.transform.to_feature_major import ToFeatureMajor

Phase = tuple[str, list[tvm.transform.Pass]]


def shared_phases() -> list[Phase]:
    """Return the phases that are the same for every level."""
    return [
        ("1_simplify", simplify_passes()),
        ("2_fuse_composites", fuse_composites_passes()),
    ]


def level_phases(context: VariantContext) -> list[Phase]:
    """Return the phases of one level at one length."""
    return [
        ("3_annotate_sparsity", [AnnotateSparsity(context)]),
        ("4_to_feature_major", [ToFeatureMajor(context)]),
        ("5_legalize", legalize_passes(context.cpu)),
        ("6_schedule_kernels", [ScheduleKernels(context.cpu), SpillToWorkspace()]),
    ]


def run_phases(mod: IRModule, phases: list[Phase], dump: Path | None = None, prefix: str = "") -> IRModule:
    """Run phases in order; with ``dump`` write the module after each as TVMScript."""
    for name, passes in phases:
        mod = tvm.transform.Sequential(passes)(mod)
        if dump is not None:
            dump.mkdir(parents=True, exist_ok=True)
            (dump / f"{prefix}{name}.py").write_text(mod.script(show_meta=False), encoding="utf-8")
    return mod
