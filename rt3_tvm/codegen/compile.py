"""``rt3 compile``: a checkpoint becomes one shared library."""

import hashlib
import math
import platform
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tvm

from rt3_tvm import __version__
from rt3_tvm import device as devices
from rt3_tvm import model as models
from rt3_tvm.checkpoint import Checkpoint, Level
from rt3_tvm.codegen import cache
from rt3_tvm.codegen.calibrate import Inputs, calibrate, read_calibration, typical_trials
from rt3_tvm.codegen.cpu_features import required_features
from rt3_tvm.codegen.differing import Built, Variant, first_difference, has_checked_calls
from rt3_tvm.codegen.elements import level_elements
from rt3_tvm.codegen.kernels import Kernel, KernelTable
from rt3_tvm.codegen.link import choose_compiler, compiler_version, link_bundle
from rt3_tvm.codegen.metadata import encode_metadata, replace_metadata
from rt3_tvm.codegen.options import CompileOptions
from rt3_tvm.codegen.plan import VariantDraft, VariantPlan, plan_variant
from rt3_tvm.codegen.prove_calls import prove_calls
from rt3_tvm.codegen.tables import LevelRow, Tables, blob_assembly, check_names
from rt3_tvm.codegen.verify import Failure, Proof, emulate_bundle, is_foreign, room_for, runs_here, verify_bundle
from rt3_tvm.codegen.weights import WEIGHTS_FILE, WeightLayout, WeightStore
from rt3_tvm.device import Device, level_frequencies
from rt3_tvm.energy.latency import frequencies_in_time
from rt3_tvm.energy.loads import checkpoint_facts
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.export.padding import Interface, Padding
from rt3_tvm.files import check_target, written_whole
from rt3_tvm.frontend import ImportedModel, import_model
from rt3_tvm.runtime.check import BUNDLE_FORMAT, check_bundle, read_metadata
from rt3_tvm.schedules import LINEAR_FAMILIES
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import REAL, ElementType
from rt3_tvm.schedules.linear_plan import MEASURED, MODELLED, TUNED, MatrixShape, TokenCount
from rt3_tvm.schedules.tuned import CoreId, Needs
from rt3_tvm.schedules.tuning_log import TuningLogs
from rt3_tvm.transform.annotate_sparsity import linear_uses
from rt3_tvm.transform.context import VariantContext
from rt3_tvm.transform.pipeline import level_phases, run_phases, shared_phases

TWIN = "twin"
"""Folder of the host twin beside the bundle that it verifies."""


@dataclass
class CompileReport:
    """What was built: seconds by phase, bytes, and the metadata that the bundle carries."""

    path: Path
    compiler: list[str]
    metadata: dict[str, Any]
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    from_cache: bool = False
    latency_source: str = ""
    """Where the latency comes from that the frequencies follow from; empty where they do not."""
    logs: TuningLogs | None = None

    @property
    def tuning(self) -> list[str]:
        """What there is to say of plans that were measured; nothing where no log has records of the core."""
        if self.logs is None:
            return []
        linears = [k for k in self.metadata["kernels"] if k["family"] in LINEAR_FAMILIES]
        plans = Counter(k.get("plan", MODELLED) for k in linears)
        counts = ", ".join(f"{plans[source]} {source}" for source in (TUNED, MEASURED, MODELLED))
        said = f"plans of {len(linears)} linear kernels: {counts}"
        found = [f"{said}; {len(self.logs.records)} records of {self.logs.core.core}"] if self.logs.records else []
        return [*self.logs.ignored, *found]


def compile_checkpoint(
    checkpoint: Checkpoint,
    output: str | Path,
    options: CompileOptions | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> CompileReport:
    """Compile a checkpoint to a bundle.

    Parameters
    ----------
    output
        Path of the shared library; written under another name and renamed when it is whole.
    progress
        Called with one line per phase.
    """
    options = options or CompileOptions()
    output = Path(output)
    for path in (output, options.twin):
        if path is not None:
            check_target(path)
    device = devices.load(options.device)
    if options.cluster is not None:
        device = device.with_cluster(options.cluster)
    cluster = device.cluster
    target = cluster.target_dict()
    triple = str(target.get("mtriple", ""))
    compiler = choose_compiler(triple, options.cross_compiler, platform.machine(), str(target.get("mcpu", "")))
    cpu = CpuShape.of(cluster)
    elements = level_elements(options, checkpoint, device, cpu)
    hz, latency_source = _frequencies(checkpoint, device, options)
    logs = TuningLogs.of(CoreId.of(cluster.core, cpu), options.tuning_log)
    key = cache.key_of(
        checkpoint=checkpoint.digest,
        options=replace(
            options, device="", cluster=None, dump_ir=None, latency=None, tuning_log=None, twin=None
        ).__dict__
        | {"frequencies": hz, "calibrate": file_digest(options.calibrate)},
        tuned=logs.decisive,
        name=output.name,
        device=repr(device),
        compiler=[compiler, compiler_version(compiler)],
        packages=[f"{name} {version(name)}" for name in ("apache-tvm", "torch", "transformers")],
    )
    use_cache = options.cache and options.dump_ir is None
    if use_cache and options.twin is None and (report := _from_cache(key, output, compiler)) is not None:
        progress(f"{output} was built before: taken from {cache.folder()}")
        report.latency_source, report.logs = latency_source, logs
        return report

    build = _Build(checkpoint, options, cpu, elements, logs, output.name, progress)
    try:
        build.plan()
    except tvm.error.InternalError as error:
        reason = str(error).strip().splitlines()[0]
        raise JobError(f"TVM failed on this model: {reason}") from error
    levels = [LevelRow(f, options.deadline_s, lv.density) for f, lv in zip(hz, checkpoint.levels, strict=True)]
    metadata = build.metadata() | {
        "device": device.name,
        "cluster": cluster.name,
        "target": target,
        "cpu_features": sorted(required_features(target)),
        "compiler": compiler,
        "levels": [
            {
                "frequency_hz": row.frequency_hz,
                "deadline_s": row.deadline_s,
                "density": row.density,
                "sparsity": lv.sparsity,
            }
            | _named(element)
            for row, lv, element in zip(levels, checkpoint.levels, elements, strict=True)
        ],
    }
    report = CompileReport(output, compiler, metadata, latency_source=latency_source, logs=logs)
    try:
        with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
            progress(f"compile {len(build.kernels.kernels)} kernels, link with {' '.join(compiler)}")
            place = _Place(Path(folder), target, compiler, build.seconds)
            metadata["verified"] = build.make_right(place, levels, metadata)
            replace_metadata(Path(folder) / "bundle.so", metadata)
            if options.twin is not None:
                _install_twin(Path(folder) / TWIN / "bundle.so", options.twin, metadata)
            _install(Path(folder) / "bundle.so", output)
            if use_cache:
                cache.store(key, Path(folder) / "bundle.so")
    except OSError as error:
        raise JobError(f"cannot write '{output}': {error.strerror or error}") from error
    report.bytes, report.seconds = output.stat().st_size, build.seconds
    return report


def file_digest(path: Path | None) -> str:
    """Return a digest of what a file holds; empty for none.

    Raises
    ------
    Rt3Error
        It cannot be read.
    """
    if path is None:
        return ""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Rt3Error(f"`calibrate` '{path}' cannot be read: {error.strerror or error}") from error


def _named(element: ElementType) -> dict[str, str]:
    """Return what metadata say of an element type: nothing of float32."""
    return {"dtype": element.dtype} if element is not REAL else {}


def _frequencies(checkpoint: Checkpoint, device: Device, options: CompileOptions) -> tuple[tuple[float, ...], str]:
    """Return the Hz of each level, and where the latency comes from that they follow from, if they do."""
    if options.latency is not None:
        levels = [level.loads for level in checkpoint_facts(checkpoint).levels]
        return frequencies_in_time(device, levels, options.latency, max(options.lengths), options.deadline_s)
    named = [level.frequency_hz for level in checkpoint.levels]
    return level_frequencies(device, len(checkpoint.levels), options.frequencies, named, labels=True), ""


def _from_cache(key: str, output: Path, compiler: list[str]) -> CompileReport | None:
    """Install a bundle that was built before; None when there is none, or not a whole one."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
        found = Path(folder) / "bundle.so"
        if not cache.fetch(key, found):
            return None
        try:
            check_bundle(found, for_this_machine=False)
            metadata = read_metadata(found)
        except Rt3Error:
            return None
        _install(found, output)
    seconds = {"cache": time.perf_counter() - start}
    return CompileReport(output, compiler, metadata, output.stat().st_size, seconds, from_cache=True)


def _install(source: Path, target: Path) -> None:
    with written_whole(target, mode=0o755) as temporary:
        shutil.copyfile(source, temporary)


def _install_twin(made: Path, output: Path, metadata: dict[str, Any]) -> None:
    """Write the host twin of a bundle that is for another machine."""
    if not made.exists():
        raise Rt3Error("`twin`: the bundle runs on this machine itself")
    replace_metadata(made, metadata | {"device": "host", "twin_of": metadata["device"]})
    _install(made, output)


class _Timer:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name, self.start = seconds, name, 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.start


@dataclass(frozen=True)
class _Place:
    """Where a bundle is made, for which target, by which C compiler; and the seconds that it takes, by phase."""

    folder: Path
    target: dict[str, Any]
    compiler: list[str]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle.so"

    def timed(self, name: str) -> _Timer:
        return _Timer(self.seconds, name)


Import = tuple[int, ImportedModel, tvm.IRModule]
"""A length, the imported model, and its module after the phases that levels share."""


def _facts_of(kernel: Kernel) -> dict[str, str]:
    """Return what the metadata say of a kernel; of its plan only what is not modelled."""
    facts = {"symbol": kernel.symbol, "family": kernel.family}
    return facts if kernel.source == MODELLED else facts | {"plan": kernel.source}


class _Build:
    """One compilation: plans of all variants over shared kernels and weights."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: CompileOptions,
        cpu: CpuShape,
        elements: tuple[ElementType, ...],
        logs: TuningLogs,
        soname: str,
        progress: Callable[[str], None],
    ) -> None:
        self.checkpoint, self.options, self.cpu, self.soname, self.progress = checkpoint, options, cpu, soname, progress
        self.elements = elements
        self.logs = logs
        self.kernels, self.store = KernelTable(), WeightStore(checkpoint)
        self.weights = WeightLayout((), ())
        self.variants: dict[tuple[int, int], Variant] = {}
        self.seconds: dict[str, float] = {}
        self.imported: ImportedModel | None = None
        self.model = checkpoint.dense_model()
        self.calibrated: dict[str, Any] = {}
        self.typical: list[Inputs] = []

    def timed(self, name: str) -> _Timer:
        return _Timer(self.seconds, name)

    def plan(self) -> None:
        """Import, transform and plan every level at every length."""
        model = self.model
        with self.timed("import"):
            interface = Interface.of(model)
        check_names(interface.inputs, interface.outputs)
        self._calibrate(interface)
        imports = [self._import(model, length, interface) for length in self._lengths(model)]
        tuned = self.logs.plans(self._needs(imports), self.cpu, self.options.threads)
        drafts: list[tuple[ImportedModel, tvm.IRModule, VariantContext, VariantDraft]] = []
        for length, imported, mod in imports:
            for i, level in enumerate(self.checkpoint.levels):
                self.progress(f"level {i} at length {length}")
                context = replace(self._context(i, level, length, imported), tuned=tuned)
                with self.timed("transform"):
                    lowered = run_phases(mod, level_phases(context), self.options.dump_ir, f"t{length}_level{i}_")
                with self.timed("plan"):
                    draft = plan_variant(lowered, i, length, self.kernels, self.store)
                drafts.append((imported, mod, context, draft))
        self.weights = self.store.lay_out()
        for imported, mod, context, draft in drafts:
            plan = draft.placed(self.weights.offsets)
            self.variants[plan.level, plan.length] = Variant(imported, mod, context, plan)

    def _calibrate(self, interface: Interface) -> None:
        """Find what is largest of what layers read, on the inputs that were given, if any were."""
        path = self.options.calibrate
        if path is None:
            return
        self.progress(f"calibrate with {path}")
        with self.timed("calibrate"):
            self.typical = read_calibration(path, self.checkpoint, interface.specs)
            self.store.calibration = calibrate(self.checkpoint, self.checkpoint.dense_model(), self.typical)
        rows = sum(len(next(iter(batch.values()))) for batch in self.typical)
        self.calibrated = {"calibrated": {"file": path.name, "rows": rows}}

    def _context(self, i: int, level: Level, length: int, imported: ImportedModel) -> VariantContext:
        options = self.options
        sizes = i, options.batch, length, self.cpu
        asked = self.elements[i], options.keep_float
        known = self.store.calibration
        return VariantContext(*sizes, imported.parameters, level.matrices, *asked, calibration=known)

    def _needs(self, imports: Iterable[Import]) -> Needs:
        """Return what the levels ask of plans."""
        needs: dict[tuple[MatrixShape, ElementType], set[TokenCount]] = {}
        for length, imported, mod in imports:
            for i, level in enumerate(self.checkpoint.levels):
                context = self._context(i, level, length, imported)
                for use in linear_uses(mod, imported.parameters):
                    needs.setdefault(use.need(context), set()).add(use.tokens)
        return needs

    def _import(self, model: torch.nn.Module, length: int, interface: Interface) -> Import:
        self.progress(f"import at length {length}")
        with self.timed("import"):
            imported = self.imported = import_model(model, self.options.batch, length, interface)
        with self.timed("transform"):
            mod = run_phases(imported.mod, shared_phases(), self.options.dump_ir, f"t{length}_")
        return length, imported, mod

    @property
    def _checked(self) -> list[Variant]:
        """The variants whose calls are checked one by one."""
        return [v for v in self.variants.values() if has_checked_calls(v.plan, self.kernels)]

    @property
    def plans(self) -> list[VariantPlan]:
        """The plans of all variants."""
        return [variant.plan for variant in self.variants.values()]

    def _lengths(self, model: torch.nn.Module) -> list[int]:
        if models.has_length(models.inputs_of(model)):
            return sorted(set(self.options.lengths))
        if self.options.lengths != CompileOptions.lengths:
            raise Rt3Error(f"{type(model).__name__} takes inputs of one shape: leave out the sequence lengths")
        return [1]

    def make_right(self, place: _Place, levels: list[LevelRow], metadata: dict[str, Any]) -> dict[str, Any]:
        """Make a bundle, verify it, and return what its metadata say of that.

        One for another machine is verified by its host twin, the same plans and kernels compiled for this machine. The twin is
        made at the same time.
        """
        with ThreadPoolExecutor(2) as beside:
            weights = beside.submit(self.store.write, place.folder / WEIGHTS_FILE, self.weights)
            make_twin = partial(self._twin, place.folder, levels, metadata, weights)
            twin = beside.submit(make_twin) if self.options.verify and is_foreign(place.target) else None
            self._make(place, levels, metadata, weights)
            if not self.options.verify:
                return {"skipped": "--no-verify"}
            with place.timed("verify"):
                return self._verify(place, twin.result if twin else make_twin)

    def _make(self, place: _Place, levels: list[LevelRow], metadata: dict[str, Any], weights: Future[None]) -> None:
        """Write kernels and tables for a target beside the weights, as soon as they are there, and link them."""
        assert self.imported is not None
        use_cache = self.options.cache and self.options.dump_ir is None
        folder = place.folder
        with place.timed("kernels"):
            self.kernels.compile(place.target, folder / "kernels.o", use_cache)
            weights.result()
        (folder / "metadata.json").write_bytes(encode_metadata(metadata, room_for(len(self.plans), len(self._checked))))
        tables = Tables(
            levels,
            self.plans,
            self.kernels.kernels,
            self.imported.inputs,
            self.imported.outputs,
            self.weights.sections,
            self.options.batch,
            self.imported.interface.padding is Padding.EXACT,
            required_features(place.target),
        )
        (folder / "tables.c").write_text(tables.to_c(), encoding="utf-8")
        assembly = blob_assembly(Path(WEIGHTS_FILE), Path("metadata.json"))
        (folder / "weights.S").write_text(assembly, encoding="utf-8")
        with place.timed("link"):
            limits = {"RT3_MAX_THREADS": self.options.threads, **tables.limits}
            link_bundle(place.compiler, folder, ["kernels.o"], place.bundle.name, self.soname, limits)

    def _verify(self, place: _Place, twin: Callable[[], _Place]) -> dict[str, Any]:
        imported = self.imported
        assert imported is not None
        lengths = tuple(sorted({p.length for p in self.plans}))
        exact = imported.interface.padding is Padding.EXACT
        dtypes = tuple(element.dtype for element in self.elements)
        sizes = lengths, self.options.batch, exact, dtypes
        typical = partial(typical_trials, self.typical, imported.inputs, self.options.batch) if self.typical else None
        proof = Proof(self.checkpoint, self.model, imported.outputs, *sizes, typical)
        if runs_here(place.bundle):
            self.progress("verify every level and length")
            return self._verified(place, proof)
        self.progress("verify every level and length by its kernels, built for this machine")
        with ThreadPoolExecutor(1) as beside:
            emulation = beside.submit(emulate_bundle, place.bundle, proof, place.target, place.compiler, self.soname)
            made = twin()
            facts = self._verified(made, proof)
            emulated = emulation.result().compare(proof)
        return facts | {"what": "its kernels, built for the machine that compiled it,", "emulated": emulated}

    def _twin(self, folder: Path, levels: list[LevelRow], metadata: dict[str, Any], weights: Future[None]) -> _Place:
        """Make the bundle of the same plans, and the same file of weights, for this machine."""
        machine = platform.machine()
        try:
            place = _Place(
                folder / TWIN, devices.load("host").cluster.target_dict(), choose_compiler(machine, None, machine)
            )
            place.folder.mkdir()
            (place.folder / WEIGHTS_FILE).symlink_to(folder / WEIGHTS_FILE)
            self._make(place, levels, metadata, weights)
        except Rt3Error as error:
            raise Rt3Error(f"{error.text}; it builds what this machine verifies: see `verify`") from error
        return place

    def _verified(self, place: _Place, proof: Proof) -> dict[str, Any]:
        """Verify a bundle of this machine: calls of int8, and of attention in float16, by themselves first."""
        machine = platform.machine()
        compiler = choose_compiler(machine, None, machine)
        built = Built(place.folder, "kernels.o", self.kernels, compiler, self.store, place.target)

        def explain(failure: Failure) -> str:
            return first_difference(self.variants[failure.level, failure.length], built, self.model, failure.trial)

        checked = [prove_calls(variant, built, proof, explain) for variant in self._checked]
        facts = verify_bundle(place.bundle, proof, explain)
        kinds = {
            "int8": [c for c in checked if "exact_calls" in c],
            "float16": [c for c in checked if "exact_calls" not in c],
        }
        return facts | {name: rows for name, rows in kinds.items() if rows}

    def metadata(self) -> dict[str, Any]:
        """Return what ``rt3 inspect`` shows of a bundle."""
        assert self.imported is not None
        return {
            "format": BUNDLE_FORMAT,
            "rt3_version": __version__,
            "tvm_version": tvm.__version__,
            "model": self.checkpoint.description,
            "batch": self.options.batch,
            "threads": self.options.threads,
            "lengths": sorted({p.length for p in self.plans}),
            "inputs": [s.name for s in self.imported.inputs if not s.internal],
            "outputs": [s.name for s in self.imported.outputs],
            "padding": self.imported.interface.padding.value,
            "weights_bytes": self.weights.size,
            "weight_sections": [section.__dict__ for section in self.weights.sections],
            "workspace_bytes": max(p.workspace_bytes for p in self.plans),
            "kernels": [_facts_of(kernel) for kernel in self.kernels.kernels],
            "variants": [
                {
                    "level": p.level,
                    "length": p.length,
                    "steps": [[s.kernel, s.matrix, s.flops, s.bytes] for s in p.steps],
                }
                for p in self.plans
            ],
            "matrices": self._matrices(),
            "unmatched": self._unmatched(),
        } | self.calibrated

    def _matrices(self) -> dict[str, Any]:
        """Return shape, density and kernel of each linear layer, level by level, at the first length."""
        first = min(p.length for p in self.plans)
        table: dict[str, Any] = {}
        for plan in sorted((p for p in self.plans if p.length == first), key=lambda p: p.level):
            matrices = self.checkpoint.levels[plan.level].matrices
            for step in plan.steps:
                if not step.matrix:
                    continue
                row = table.setdefault(step.matrix, {"shape": self._shape(step.matrix), "levels": []})
                if len(row["levels"]) > plan.level:  # another part of the tokens, or a layer that shares the matrix
                    continue
                matrix = matrices.get(step.matrix)
                row["levels"].append(
                    {
                        "kernel": self.kernels.kernels[step.kernel].family,
                        "density": matrix.density if matrix else 1.0,
                        "group": matrix.patterns.shape.group if matrix else 0,
                    }
                    | _named(ElementType.of(step.dtype))
                )
        return table

    def _shape(self, name: str) -> list[int]:
        """Return the (rows, cols) of a linear layer; a convolution's kernel is one row per channel."""
        for level in self.checkpoint.levels:
            if name in level.matrices:
                return list(level.matrices[name].backbone.shape)
        rows, *rest = self.checkpoint.weights[name].shape
        return [rows, math.prod(rest)]

    def _unmatched(self) -> list[str]:
        """Return pruned matrices that no linear kernel serves: they run dense, with their mask."""
        seen = {s.matrix for p in self.plans for s in p.steps}
        return sorted(set(self.checkpoint.levels[0].matrices) - seen)
