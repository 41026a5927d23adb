"""The hook that `import tvm` runs through the entry-point group ``tvm.backends``. A leaf: it imports nothing heavy."""

_registered = False


def register() -> None:
    """Register the Relax pipeline ``rt3`` and a target tag per cluster with TVM; a second call does nothing."""
    global _registered  # noqa: PLW0603
    if _registered:
        return
    _registered = True
    from tvm import relax, target

    from rt3_tvm.device.toml import tag_table

    relax.register_pipeline("rt3")(_pipeline)
    for tag, config in tag_table().items():
        target.register_tag(tag, config, override=True)


def _pipeline() -> object:
    """Return phases 1 and 2, which need no checkpoint, as one pass: ``relax.get_pipeline("rt3")``."""
    import tvm

    from rt3_tvm.transform.pipeline import shared_phases

    return tvm.transform.Sequential([p for _, passes in shared_phases() for p in passes], name="rt3")
