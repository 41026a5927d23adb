"""What is measured for a table of latencies."""

from dataclasses import dataclass

from rt3_tvm.errors import Rt3Error
from rt3_tvm.options import DTYPES, FLOAT32, FREQUENCIES, NAMES, WHOLE, documented, numbers, option, wholes


@documented
@dataclass(frozen=True)
class LatencyOptions:
    """What is measured."""

    tokens: int = option(128, WHOLE.called("T"), "tokens of an inference", name="seq-len")
    groups: tuple[int, ...] = option((1, 2, 4), wholes("groups", "V,V"), "groups V to measure")
    sparsity: tuple[float, ...] = option(
        (0.5, 0.65, 0.75, 0.85, 0.95), numbers("sparsities", "S,S"), "sparsities to measure, beside dense"
    )
    dtype: tuple[str, ...] = option(
        (FLOAT32,),
        NAMES.called("T,T"),
        f"what to multiply, of {', '.join(DTYPES)}; levels of a bundle need a table of each of theirs",
    )
    frequencies: tuple[float, ...] | None = option(
        None,
        FREQUENCIES,
        "hold these one by one (root); default measure at the clock it runs at",
        name="freqs",
    )

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise Rt3Error("`tokens` must be at least 1")
        for dtype in self.dtype:
            if dtype not in DTYPES:
                raise Rt3Error(f"`dtype` '{dtype}' is unknown: choose from {', '.join(DTYPES)}")
        if not self.groups or min(self.groups) < 1:
            raise Rt3Error(f"`groups` {','.join(map(str, self.groups))}: each must be at least 1")
        if not self.sparsity or not all(0.0 < s < 1.0 for s in self.sparsity):
            raise Rt3Error(f"`sparsity` {','.join(f'{s:g}' for s in self.sparsity)}: each must be in (0, 1)")
