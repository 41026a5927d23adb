"""The tables of a bundle as C: levels, variants, steps; and the assembly that brings in the weights."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rt3_tvm.codegen.cpu_features import Bits
from rt3_tvm.codegen.kernels import Kernel
from rt3_tvm.codegen.plan import VariantPlan
from rt3_tvm.codegen.weights import WEIGHTS_ALIGNMENT, WeightSection
from rt3_tvm.errors import Rt3Error
from rt3_tvm.model import IDS, InputSpec, OutputSpec
from rt3_tvm.runtime.check import BUNDLE_FORMAT, METADATA_SECTION, WEIGHTS_SECTION
from rt3_tvm.runtime.checksums import SECTION, TABLE_BYTES


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
    sections: Sequence[WeightSection]
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
            "RT3_MAX_TENSORS": sum(not s.internal for s in self.inputs) + len(self.outputs),
        }

    def to_c(self) -> str:
        """Return the C source."""
        plans = sorted(self.plans, key=lambda p: (p.level, p.length))
        tables = {
            "levels": _array("rt3_level_info", "levels", map(_level, self.levels)),
            "kernels": _array("rt3_kernel", "kernels", map(_kernel, self.kernels)),
            "variants": _array("rt3_variant", "variants", (_variant(i, p) for i, p in enumerate(plans))),
            "inputs": _array("rt3_input_spec", "inputs", (_input(s, i > 0) for i, s in enumerate(self.inputs))),
            "outputs": _array("rt3_tensor_info", "outputs", map(_output, self.outputs)),
            "sections": _array("rt3_weight_section", "sections", map(_section, self.sections)),
            "features": _array("rt3_cpu_feature", "features", [*_features(self.features), "{.name = NULL}"]),
        }
        internal = sum(s.internal for s in self.inputs)  # they are the last ones
        bundle = _struct(
            level_count=len(self.levels),
            variant_count=len(plans),
            input_count=len(self.inputs) - internal,
            internal_count=internal,
            output_count=len(self.outputs),
            section_count=len(self.sections),
            batch=self.batch,
            max_length=max(p.length for p in plans),
            exact_lengths=str(self.exact_lengths).lower(),
            workspace_bytes=f"{max(p.workspace_bytes for p in plans)}u",
            **{name: name for name in tables},
        )
        return "\n".join(
            [
                '#include "rt3_internal.h"\n',
                f'_Static_assert(RT3_API_VERSION == {BUNDLE_FORMAT}, "format of the bundle");\n',
                *map(_shim, self.kernels),
                *(_steps(i, p, self.kernels) for i, p in enumerate(plans)),
                *tables.values(),
                *(_fill_assertion(s) for s in self.inputs if s.dtype == IDS),
                f"const rt3_bundle rt3_bundle_tables = {bundle};\n",
            ]
        )


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


def _axes(axes: Sequence[str | int]) -> str:
    names = {"batch": "RT3_AXIS_BATCH", "length": "RT3_AXIS_LENGTH"}
    return "{" + ", ".join(names.get(str(axis), str(axis)) for axis in axes) + "}"


def _array(kind: str, name: str, rows: Iterable[str]) -> str:
    return f"static const {kind} {name}[] = {{\n  " + ",\n  ".join(rows) + "};\n"


def _struct(**fields: object) -> str:
    """Return an initialiser that names its members."""
    return "{" + ", ".join(f".{name} = {value}" for name, value in fields.items()) + "}"


def _dtype(dtype: str) -> str:
    return f"RT3_{dtype.upper()}"


def _level(level: LevelRow) -> str:
    return _struct(frequency_hz=level.frequency_hz, deadline_s=level.deadline_s, density=level.density)


def _input(spec: InputSpec, optional: bool) -> str:
    info = _struct(
        name=_string(spec.name),
        dtype=_dtype(spec.dtype),
        rank=len(spec.axes),
        axes=_axes(spec.axes),
        limit=spec.limit,
        optional=int(optional),
    )
    return _struct(info=info, fill=spec.fill, mask=str(spec.mask).lower())


def _output(spec: OutputSpec) -> str:
    return _struct(name=_string(spec.name), dtype=_dtype(spec.dtype), rank=len(spec.axes), axes=_axes(spec.axes))


def _section(section: WeightSection) -> str:
    return _struct(level=section.level, offset=f"{section.offset}u", bytes=f"{section.bytes}u")


def _features(features: Mapping[str, Bits]) -> list[str]:
    return [
        _struct(name=f'"{name}"', word=f"RT3_{word}", bit=bit) for name, rows in features.items() for word, bit in rows
    ]


def _kernel(kernel: Kernel) -> str:
    return _struct(run=f"run_{kernel.symbol}", arg_count=f"ARGS_{kernel.symbol}", tasks=kernel.tasks)


def _variant(index: int, plan: VariantPlan) -> str:
    return _struct(
        level=plan.level,
        length=plan.length,
        steps=f"steps_{index}",
        step_count=len(plan.steps),
        inputs=f"inputs_{index}",
        outputs=f"outputs_{index}",
    )


def _shim(kernel: Kernel) -> str:
    """Return the prototype of a kernel, how many pointers it takes, and the function that calls it on an array of them."""
    types = ", ".join(["void *"] * kernel.arguments)
    args = ", ".join(f"a[{i}]" for i in range(kernel.arguments))
    return (
        f"void {kernel.symbol}({types}, int32_t, int32_t);\n"
        f"enum {{ ARGS_{kernel.symbol} = {kernel.arguments} }};\n"
        f'_Static_assert(ARGS_{kernel.symbol} <= RT3_MAX_ARGS, "room for the arguments of a kernel");\n'
        f"static void run_{kernel.symbol}(void *const *a, int32_t first, int32_t last) "
        f"{{ {kernel.symbol}({args}, first, last); }}\n"
    )


def _steps(index: int, plan: VariantPlan, kernels: Sequence[Kernel]) -> str:
    """Return the steps of a variant with the places of their arguments, as many as the kernel takes: C checks it."""
    places = []
    for i, step in enumerate(plan.steps):
        name = f"args_{index}_{i}"
        rows = ", ".join(f"{{RT3_{p.segment.upper()}, {p.offset}u}}" for p in step.args)
        places.append(
            f"static const rt3_place {name}[] = {{{rows}}};\n"
            f"_Static_assert(sizeof {name} == ARGS_{kernels[step.kernel].symbol} * sizeof *{name}, "
            f'"arguments of step {i}");'
        )
    steps = (_struct(kernel=s.kernel, args=f"args_{index}_{i}") for i, s in enumerate(plan.steps))
    return "\n".join(
        [
            *places,
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
