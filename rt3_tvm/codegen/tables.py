"""The tables of a bundle as C: levels, variants, steps; and the assembly that brings in the weights."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rt3_tvm.codegen.cpu_features import Bits
from rt3_tvm.codegen.kernels import Kernel
from rt3_tvm.codegen.plan import Step, VariantPlan
from rt3_tvm.errors import Rt3Error
from rt3_tvm.model import InputSpec, OutputSpec
from rt3_tvm.runtime.check import METADATA_SECTION, WEIGHTS_SECTION
from rt3_tvm.runtime.checksums import SECTION, TABLE_BYTES

WEIGHTS_ALIGNMENT = 16384
"""The largest page of the systems we target, so that the weights begin on a page of their own."""


@dataclass(frozen=True)
class LevelRow:
    """A level of the dispatcher's table: Hz, s (0: none), kept part of the pruned matrices."""

    frequency_hz: float
    deadline_s: float
    density: float


@dataclass(frozen=True, eq=False)
class Tables:
    """Everything that the generated C file holds."""

    levels: Sequence[LevelRow]
    plans: Sequence[VariantPlan]
    kernels: Sequence[Kernel]
    inputs: Sequence[InputSpec]
    outputs: Sequence[OutputSpec]
    batch: int
    exact_lengths: bool
    features: Mapping[str, Bits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(self.inputs, self.outputs)

    @property
    def limits(self) -> dict[str, int]:
        """What the runtime's arrays are sized by: the most pointers of a kernel, and the tensors of a call."""
        return {
            "RT3_MAX_ARGS": max((k.arguments for k in self.kernels), default=1),
            "RT3_MAX_TENSORS": len(self.inputs) + len(self.outputs),
        }

    def to_c(self) -> str:
        """Return the C source."""
        plans = sorted(self.plans, key=lambda p: (p.level, p.length))
        parts = ['#include "rt3_internal.h"\n']
        parts += [_shim(k) for k in self.kernels]
        parts += [_variant_tables(i, p, self.kernels) for i, p in enumerate(plans)]
        parts.append(
            _array(
                "rt3_level_info",
                "levels",
                (f"{{{lv.frequency_hz!r}, {lv.deadline_s!r}, {lv.density!r}}}" for lv in self.levels),
            )
        )
        parts.append(
            _array(
                "rt3_variant",
                "variants",
                (
                    f"{{{p.level}, {p.length}, steps_{i}, {len(p.steps)}, inputs_{i}, outputs_{i}}}"
                    for i, p in enumerate(plans)
                ),
            )
        )
        parts.append(
            _array(
                "rt3_input_spec",
                "inputs",
                (
                    f"{{{{{_string(s.name)}, RT3_{s.dtype.upper()}, {len(s.axes)}, {{{', '.join(map(_axis, s.axes))}}}, "
                    f"{s.limit}, {int(i > 0)}}}, {s.fill}, {str(s.mask).lower()}}}"
                    for i, s in enumerate(self.inputs)
                ),
            )
        )
        parts.append(
            _array(
                "rt3_tensor_info",
                "outputs",
                (
                    f"{{{_string(o.name)}, RT3_FLOAT32, {len(o.axes)}, {{{', '.join(_axis(a) for a in o.axes)}}}, 0, 0}}"
                    for o in self.outputs
                ),
            )
        )
        bits = [f'{{"{name}", RT3_{word}, {bit}}}' for name, rows in self.features.items() for word, bit in rows]
        parts.append(_array("rt3_cpu_feature", "features", [*bits, "{NULL, RT3_HWCAP, 0}"]))
        parts += [_fill_assertion(s) for s in self.inputs if s.dtype != "float32"]
        workspace = max(p.workspace_bytes for p in plans)
        longest = max(p.length for p in plans)
        internal = sum(s.internal for s in self.inputs)  # they are the last ones
        parts.append(
            "const rt3_bundle rt3_bundle_tables = {"
            f"{len(self.levels)}, {len(plans)}, {len(self.inputs) - internal}, {len(self.outputs)}, {self.batch}, {longest}, "
            f"{internal}, {str(self.exact_lengths).lower()}, {workspace}u, levels, variants, inputs, outputs, features}};\n"
        )
        return "\n".join(parts)


def check_names(inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]) -> None:
    """Refuse a model of which two inputs or two outputs have one name: a caller could reach one of them only."""
    for what, specs in (("inputs", inputs), ("outputs", outputs)):
        counts = Counter(s.name for s in specs)
        for name in (n for n, count in counts.items() if count > 1):
            raise Rt3Error(f"the model has {counts[name]} {what} of the name '{name}': each needs one of its own")


def _fill_assertion(spec: InputSpec) -> str:
    """Return what keeps padding from being looked up outside of its table."""
    return f'_Static_assert({spec.fill} >= 0 && {spec.fill} < {spec.limit}, "padding of {spec.name}");\n'


def _string(text: str) -> str:
    assert text.isidentifier()
    return f'"{text}"'


def _axis(axis: str | int) -> str:
    return {"batch": "RT3_AXIS_BATCH", "length": "RT3_AXIS_LENGTH"}.get(str(axis), str(axis))


def _array(kind: str, name: str, rows: Iterable[str]) -> str:
    return f"static const {kind} {name}[] = {{\n  " + ",\n  ".join(rows) + "};\n"


def _shim(kernel: Kernel) -> str:
    """Return the prototype of a kernel, and the function that calls it on an array of pointers."""
    types = ", ".join(["void *"] * kernel.arguments)
    args = ", ".join(f"a[{i}]" for i in range(kernel.arguments))
    return (
        f"void {kernel.symbol}({types}, int32_t, int32_t);\n"
        f"static void run_{kernel.symbol}(void *const *a, int32_t first, int32_t last) "
        f"{{ {kernel.symbol}({args}, first, last); }}\n"
    )


def _variant_tables(index: int, plan: VariantPlan, kernels: Sequence[Kernel]) -> str:
    def place_rows(step: Step) -> str:
        return ", ".join(f"{{{int(p.in_weights)}, 0, {p.offset}u}}" for p in step.args)

    def args_of(i: int, step: Step) -> str:
        """Return the arguments of a step; the kernel's own number of them is the length that C checks."""
        name, count = f"args_{index}_{i}", kernels[step.kernel].arguments
        assert len(step.args) == count, f"{kernels[step.kernel].symbol} takes {count} arguments"
        return (
            f"static const rt3_place {name}[] = {{{place_rows(step)}}};\n"
            f'_Static_assert(sizeof {name} / sizeof *{name} <= RT3_MAX_ARGS, "arguments of {name}");'
        )

    args = [args_of(i, s) for i, s in enumerate(plan.steps)]
    steps = (
        f"{{run_{kernels[s.kernel].symbol}, args_{index}_{i}, {len(s.args)}, {s.kernel}, {kernels[s.kernel].tasks}}}"
        for i, s in enumerate(plan.steps)
    )
    return "\n".join(
        [
            *args,
            _array("rt3_step", f"steps_{index}", steps),
            _array("uint64_t", f"inputs_{index}", (f"{o}u" for o in plan.inputs)),
            _array("uint64_t", f"outputs_{index}", (f"{o}u" for o in plan.outputs)),
        ]
    )


def blob_assembly(weights: Path, metadata: Path) -> str:
    """Return assembly that places two files in read-only sections of the library, and a third to hold the checksums."""

    def blob(section: str, symbol: str, path: Path, alignment: int) -> str:
        return (
            f'  .section {section}, "a"\n  .globl {symbol}\n  .hidden {symbol}\n  .balign {alignment}\n{symbol}:\n'
            f'  .incbin "{path}"\n  .byte 0\n'
        )

    return (
        blob(WEIGHTS_SECTION, "rt3_weights", weights, WEIGHTS_ALIGNMENT)
        + blob(METADATA_SECTION, "rt3_metadata_json", metadata, 8)
        + f'  .section {SECTION}, "a"\n  .globl rt3_checksums\n  .hidden rt3_checksums\n  .balign 8\nrt3_checksums:\n'
        f"  .zero {TABLE_BYTES}\n" + '  .section .note.GNU-stack, ""\n'
    )
