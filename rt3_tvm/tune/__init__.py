"""Tuning: plans of kernels measured on a device, and the log of what was found; the compiler reads the log, not this room."""

from rt3_tvm.lazy import offer

__getattr__ = offer(
    __name__,
    {
        "TuneOptions": ("rt3_tvm.tune.options", "TuneOptions"),
        "tune": ("rt3_tvm.tune.run", "tune"),
    },
)
