"""``rt3 inspect``: what a checkpoint or a bundle holds."""

from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table

from rt3_tvm.report.ops import OpRow
from rt3_tvm.runtime.check import SHARED, read_metadata

PLANS = {
    "tuned": "tuned: faster than the modelled one where it was measured",
    "measured": "measured: the modelled one, and none that was tried is faster",
    "modelled": "modelled: the cheapest by the model of the core",
}
"""What is said of the source of a plan."""


def describe(path: Path) -> dict[str, Any]:
    """Return the facts of a checkpoint (a directory) or a bundle (a file)."""
    if path.is_dir():
        return _describe_checkpoint(path)
    return {"kind": "bundle", "path": str(path), "bytes": path.stat().st_size if path.exists() else 0} | read_metadata(
        path
    )


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    from rt3_tvm.checkpoint import FORMAT_VERSION, Checkpoint

    checkpoint = Checkpoint.load(path)
    matrices = {}
    for name in checkpoint.levels[0].matrices:
        per_level = [level.matrices[name] for level in checkpoint.levels]
        shape = per_level[0].patterns.shape
        matrices[name] = {
            "shape": list(per_level[0].backbone.shape),
            "backbone_density": per_level[0].backbone.density,
            "pattern_shape": [shape.rows, shape.cols],
            "adjacent": shape.adjacent,
            "levels": [
                {"density": m.density, "group": m.patterns.shape.group, "patterns": len(m.patterns.columns)}
                for m in per_level
            ],
        }
    return {
        "kind": "checkpoint",
        "path": str(path),
        "format": FORMAT_VERSION,
        "bytes": sum(f.stat().st_size for f in path.iterdir()),
        "model": checkpoint.description,
        "levels": [{"sparsity": lv.sparsity, "density": lv.density} for lv in checkpoint.levels],
        "matrices": matrices,
        "skipped": checkpoint.skipped,
    }


def tables(facts: dict[str, Any]) -> list[Any]:
    """Return the facts as lines and tables for a terminal."""
    is_bundle = facts["kind"] == "bundle"
    parts: list[Any] = [
        f"{facts['path']}: {facts['kind']} of {facts['model']['class']}, {facts['bytes'] / 2**20:.1f} MiB"
    ]
    if is_bundle:
        target = facts["target"]
        parts.append(
            f"device {facts['device']} ({facts['cluster']}, {target.get('mcpu', '')}), batch {facts['batch']}, "
            f"lengths {', '.join(map(str, facts['lengths']))}; rt3 {facts['rt3_version']}, TVM {facts['tvm_version']}"
        )
        parts.append(
            f"weights {facts['weights_bytes'] / 2**20:.1f} MiB ({_sections(facts)}), "
            f"workspace {facts['workspace_bytes'] / 2**20:.2f} MiB"
        )
        parts.append(_verified(facts.get("verified", {"skipped": "made by an rt3 that did not"})))
    parts.append(_levels_table(facts, is_bundle))
    parts.append(_matrices_table(facts))
    if is_bundle:
        families = Counter(k["family"] for k in facts["kernels"])
        parts.append("kernels: " + ", ".join(f"{n} {family}" for family, n in sorted(families.items())))
        parts.append(_plans_table(facts))
        parts.extend(f"not matched, dense with its mask: {name}" for name in facts["unmatched"])
    else:
        parts.extend(f"dense: {name} ({reason})" for name, reason in facts["skipped"].items())
    return parts


def _plans_table(facts: dict[str, Any]) -> Table:
    """Return where the plan of each linear kernel is from."""
    table = Table(title="plans of linear kernels")
    table.add_column("kernel", no_wrap=True)
    table.add_column("plan")
    for kernel in facts["kernels"]:
        if kernel["family"].endswith("linear"):
            table.add_row(kernel["symbol"], PLANS[kernel.get("plan", "modelled")])
    return table


def _sections(facts: dict[str, Any]) -> str:
    """Return how many MiB of weights levels share and each has for itself."""
    rows = facts["weight_sections"]
    names = ("shared" if row["level"] == SHARED else f"level {row['level']}" for row in rows)
    return ", ".join(f"{name} {row['bytes'] / 2**20:.1f}" for name, row in zip(names, rows, strict=True))


def _verified(facts: dict[str, Any]) -> str:
    """Return what a bundle says of its comparison with PyTorch, in a line."""
    if "skipped" in facts:
        return f"not verified: {facts['skipped']}"
    worst = max(facts["errors"], key=lambda row: row["error"])
    emulated = facts.get("emulated")
    under = ""
    if emulated:
        under = (
            f"; not run under qemu: {emulated['skipped']}"
            if "skipped" in emulated
            else f"; run by {emulated['command']}"
        )
    exact = "; every call of int8 against integers" if "int8" in facts else ""
    rows = [*facts.get("int8", ()), *facts.get("float16", ())]
    exact += "; attention in float16 against NumPy" if any("rounded_calls" in row for row in rows) else ""
    return (
        f"verified: {facts['what']} against masked PyTorch, largest error {worst['error']:g} (level {worst['level']}, length "
        f"{worst['length']}; tolerated {max(facts['tolerance'].values()):g}){exact}{under}"
    )


def ops_table(rows: list[OpRow]) -> Table:
    """Return the kernels of a variant as a table for a terminal."""
    table = Table(title=f"kernels, {sum(r.ms for r in rows):.3f} ms in all (measured, medians)")
    for head in ("kernel", "calls", "ms", "share", "GFLOP", "GFLOP/s", "of peak", "MB", "GB/s"):
        table.add_column(head, justify="left" if head == "kernel" else "right", no_wrap=True)
    for r in rows:
        share = "unknown" if r.of_peak is None else f"{r.of_peak:.0%}"
        speed = (f"{r.gflop:.3f}", f"{r.gflops:.1f}", share) if r.gflop else ("", "", "")
        table.add_row(
            r.symbol, str(r.calls), f"{r.ms:.3f}", f"{r.share:.1%}", *speed, f"{r.mbytes:.2f}", f"{r.gbytes_per_s:.1f}"
        )
    return table


def _levels_table(facts: dict[str, Any], is_bundle: bool) -> Table:
    table = Table(title="levels")
    dtypes = ("dtype",) if any("dtype" in row for row in facts["levels"]) else ()
    for head in ("level", *(("from GHz", "deadline ms") if is_bundle else ()), "sparsity asked", "density", *dtypes):
        table.add_column(head, justify="right")
    for i, row in enumerate(facts["levels"]):
        clock: tuple[str, ...] = ()
        if is_bundle:
            clock = (f"{row['frequency_hz'] / 1e9:g}", f"{row['deadline_s'] * 1e3:g}" if row["deadline_s"] else "none")
        numbers = (row.get(name, "float32") for name in dtypes)
        table.add_row(str(i), *clock, f"{row['sparsity']:g}", f"{row['density']:.4f}", *numbers)
    return table


def _matrices_table(facts: dict[str, Any]) -> Table:
    table = Table(title="matrices")
    table.add_column("weight")
    table.add_column("shape", justify="right")
    for i in range(len(facts["levels"])):
        table.add_column(f"level {i}")
    for name, row in facts["matrices"].items():
        cells = (
            " ".join(
                filter(
                    None,
                    (
                        lv.get("kernel", ""),
                        lv.get("dtype", ""),
                        f"{lv['density']:.3f}",
                        f"V={lv['group']}" if lv["group"] else "",
                    ),
                )
            )
            for lv in row["levels"]
        )
        table.add_row(name, "x".join(map(str, row["shape"])), *cells)
    return table
