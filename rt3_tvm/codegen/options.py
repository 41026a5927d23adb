"""What a bundle is compiled for."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from rt3_tvm.errors import Rt3Error
from rt3_tvm.options import (
    DTYPES,
    FREQUENCIES,
    MILLISECONDS,
    NAMES,
    PATH,
    TEXT,
    WHOLE,
    documented,
    option,
    switch,
    wholes,
)

MAX_THREADS = 64

_levels = partial(option, either="levels")


@documented
@dataclass(frozen=True)
class CompileOptions:
    """What a bundle is compiled for."""

    device: str = option("host", TEXT, "name of a device, see rt3 devices, or a path that ends in .toml")
    frequencies: tuple[float, ...] | None = _levels(
        None,
        FREQUENCIES,
        "one per level, descending, as 1.4GHz,1.0GHz,0.8GHz; default those that the checkpoint names, else the top, "
        "the lowest and evenly spaced operating points of the device",
        name="freqs",
    )
    latency: str | None = _levels(
        None,
        TEXT.called("rt3|FILE"),
        "instead: for each level the lowest operating point that meets the deadline, by RT3's model or a file of "
        "rt3 bench latency",
    )
    lengths: tuple[int, ...] = option(
        (128,),
        wholes("sequence lengths", "T,T"),
        "sequence lengths in tokens; a call takes the smallest that fits",
        name="seq-len",
    )
    dtype: tuple[str, ...] = option(
        ("float32",),
        NAMES.called("T,T,T"),
        f"what linear layers multiply, of {', '.join(DTYPES)}: one, or one per level; a matrix that gains nothing keeps float32",
    )
    keep_float: tuple[str, ...] = option(
        (),
        TEXT.called("GLOB"),
        "parameters whose linear layers keep float32, by name, and `attention` itself; repeat it for more",
        repeated=True,
    )
    calibrate: Path | None = option(
        None,
        PATH.called("FILE"),
        "typical inputs, from which int8 gets static scales and smoothing: NumPy arrays by input name (.npz), or sentences for "
        "the checkpoint's tokenizer; default a scale for each token as it comes",
    )
    batch: int = option(1, WHOLE, "largest batch")
    deadline_s: float = option(
        0.0, MILLISECONDS, "of one inference, the same at every level, that `auto` watches; 0: none", name="deadline"
    )
    threads: int = option(
        1, WHOLE, f"most threads of a run, 1 to {MAX_THREADS}; it takes as many as there are cores, or fewer if told"
    )
    cross_compiler: str | None = option(None, TEXT.called("CMD"), "C compiler for the device, with its options")
    dump_ir: Path | None = option(
        None, PATH.called("DIR"), "write the module after each phase; nothing is taken from the cache then"
    )
    cache: bool = switch(True, "build everything anew, and keep nothing for the next time", name="no-cache")
    cluster: str | None = option(None, TEXT, "cluster whose cores will run it; default the device's first")
    tuning_log: Path | None = option(
        None,
        PATH.called("PATH"),
        "plans of kernels as rt3 tune measured them: a log or a folder of logs; default those of this core that come along",
    )
    twin: Path | None = option(
        None,
        PATH.called("FILE"),
        "of a bundle for another machine, write also what verified it: the same plans and weights, built for this machine, "
        "to measure accuracy with",
    )
    verify: bool = switch(
        True,
        "leave out the comparison of every level and length with masked PyTorch; the bundle says so",
        name="no-verify",
    )

    def __post_init__(self) -> None:
        if not self.lengths or any(n < 1 for n in self.lengths):
            raise Rt3Error(f"`lengths` {self.lengths}: give one or more, each at least 1")
        for dtype in self.dtype:
            if dtype not in DTYPES:
                raise Rt3Error(f"`dtype` '{dtype}' is unknown: choose from {', '.join(DTYPES)}")
        if self.batch < 1:
            raise Rt3Error(f"`batch` {self.batch} must be at least 1")
        if not 1 <= self.threads <= MAX_THREADS:
            raise Rt3Error(f"`threads` {self.threads}: give 1 to {MAX_THREADS}")
        if not 0 <= self.deadline_s < math.inf:
            raise Rt3Error(f"`deadline_s` {self.deadline_s} s must be finite and not negative")
        if not all(a > b > 0 for a, b in pairwise((math.inf, *(self.frequencies or ())))):
            raise Rt3Error(f"`frequencies` {self.frequencies} Hz: give them from the highest to the lowest, each once")
        if self.twin is not None and not self.verify:
            raise Rt3Error("`twin` is what verifies a bundle: it needs `verify`")
        if self.latency is not None and (self.frequencies is not None or self.deadline_s == 0):
            raise Rt3Error("`latency` needs `deadline_s`, and no `frequencies`: they follow from both")
