"""One driver for all benchmarks: ``python benchmarks/run.py [CASE ...]``; prints Markdown, and JSON lines with --json.

Cases: linear (pattern_linear against the best dense layer), few (the same for 1 to 8 tokens), families (every row of SCHEDULES
by itself), model (every level against dense rivals), dtypes (float32 and int8 beside ONNX Runtime's int8), architectures (a dense
and a sparse level of each), density (latency over density), threads (one against two), ops (where the time goes), compile (time
and peak memory of rt3 compile), verify (what its verification adds), switch and memory (C programs on a bundle), peak
(multiply-adds of one core). Run them on an otherwise idle machine. Only where they are named: shares (how much of a model's time
has no kernel of its own), tune (plans that tuning finds against untuned ones: an hour or more, or --budget), arm (instructions of
bundles for ARM cores, counted under qemu-user, on any machine), arm_dtypes (the same by element type) and arm_loops (inner loops
for them).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import arm as arm_ladder
import arm_rival
import tuning
from machine import machine

from rt3_tvm.bench.families import time_families
from rt3_tvm.bench.linear import bench_linear
from rt3_tvm.bench.linear_kernel import LinearCase
from rt3_tvm.bench.model import ModelResult, bench_model
from rt3_tvm.bench.peak import core_limits
from rt3_tvm.bench.rivals import RIVALS
from rt3_tvm.codegen.link import runtime_directory
from rt3_tvm.report.ops import measure_ops
from rt3_tvm.runtime import Bundle, load
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.timing import time_interleaved
from rt3_tvm.tune.options import DURATION

HERE = Path(__file__).parent
SHAPES = ((768, 768), (3072, 768), (768, 3072), (384, 384), (1536, 384))
TOKENS = (128, 32)
FEW_TOKENS = (1, 2, 4, 8)
SPARSITIES = (0.5, 0.75, 0.9)
GROUPS = (0, 1, 2, 4, 8)
MODELS = (
    ("random-minilm", 4, (128, 32)),
    ("random-distilbert", 4, (128, 32, 512)),
    ("random-distilbert", 1, (128,)),
    ("random-distilbert", 2, (128,)),
)
VERIFIED_FOR = ("host", "A76")
FEW_ROUNDS = 5
"""Of what takes half a minute a round."""
ARCHITECTURES = (
    "random-bert",
    "random-roberta",
    "random-electra",
    "random-mpnet",
    "random-gpt2",
    "random-llama",
    "random-lm",
    "random-vit",
    "random-deberta",
    "random-modernbert",
    "random-embeddinggemma",
)
POSITIONED = ("random-t5-encoder", "random-mpnet", "random-xlnet", "random-funnel", *ARCHITECTURES[-3:])
"""Whose positions are computed beside the linear layers: of ``shares``."""

Row = dict[str, Any]


def linear(args: argparse.Namespace) -> Iterator[Row]:
    """Yield one row per shape, tokens, group and sparsity; group 0 is our dense kernel."""
    for tokens in TOKENS:
        for rows, cols in SHAPES:
            for group in args.groups:
                for sparsity in SPARSITIES if group else (0.0,):
                    yield _linear_row(LinearCase(rows, cols, tokens, sparsity, group, args.dtype), args.rounds)


def few(args: argparse.Namespace) -> Iterator[Row]:
    """Yield one row per shape, group and sparsity for 1 to 8 tokens."""
    for tokens in FEW_TOKENS:
        for rows, cols in SHAPES[:3]:
            for group in (0, 1, 4, 8):
                for sparsity in SPARSITIES if group else (0.0,):
                    yield _linear_row(LinearCase(rows, cols, tokens, sparsity, group, args.dtype), args.rounds)


def _linear_row(case: LinearCase, rounds: int) -> Row:
    result = bench_linear(case, rounds).to_json()
    kept = 1.0 - float(str(result["sparsity"]))
    wanted = ("sparsity", "kernel", "ours_ms", "dense_ms", "dense_name", "speedup")
    row = {"tokens": case.tokens, "shape": f"{case.rows}x{case.cols}", "group": case.group}
    row |= {name: result[name] for name in wanted}
    return row | {"of_ideal": float(str(result["speedup"])) * kept, "gflops": result["gflops"]}


def families(args: argparse.Namespace) -> Iterator[Row]:
    """Yield every kernel family at MiniLM's sizes: what a call takes, computes and touches."""
    peak_rate = core_limits()["peak_gflops"]
    for row in time_families(args.rounds):
        speed = {"gflops": row.gflops, "of_peak": row.gflops / peak_rate, "gbytes_per_s": row.gbytes_per_s}
        yield {"family": row.family, "median_ms": row.timing.median, "low_ms": row.timing.low} | speed


def _rt3(*arguments: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "rt3_tvm.cli.main", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
    )


def _bundle(folder: str, name: str, sparsity: str, group: int, *options: str) -> Path:
    """Prune and compile a model; return the bundle."""
    checkpoint, bundle = Path(folder) / f"{name}-v{group}.ckpt", Path(folder) / f"{name}-v{group}.so"
    shape = ("--group", group, "--pattern-shape", f"{max(4, group)}x32")
    _rt3("prune", name, "-o", checkpoint, "--sparsity", sparsity, *shape)
    frequencies = ",".join(f"{2000 - 100 * i}MHz" for i in range(sparsity.count(",") + 1))  # labels
    _rt3("compile", checkpoint, "-o", bundle, "--no-cache", "--freqs", frequencies, *options)
    shutil.rmtree(checkpoint)
    return bundle


def _model_rows(facts: Row, result: ModelResult) -> Iterator[Row]:
    for i, (t, d) in enumerate(zip(result.levels, result.densities, strict=True)):
        row = facts | {"what": f"level {i}", "density": d, "median_ms": t.median, "low_ms": t.low, "high_ms": t.high}
        yield row | {f"vs_{n}": r.median / t.median for n, r in result.rivals.items()}
    for n, r in result.rivals.items():
        row = facts | {"what": n, "density": 1.0, "median_ms": r.median, "low_ms": r.low, "high_ms": r.high}
        yield row | {f"vs_{other}": o.median / r.median for other, o in result.rivals.items()}


def model(args: argparse.Namespace) -> Iterator[Row]:
    """Yield each level of MiniLM's and DistilBERT's dimensions, the dense one first, and each rival, int8 included."""
    with tempfile.TemporaryDirectory() as folder:
        for name, group, lengths in MODELS:
            bundle = _bundle(folder, name, "0,0.5,0.75,0.9", group, "--seq-len", ",".join(map(str, lengths)))
            for length in lengths:
                facts: Row = {"model": name, "group": group, "tokens": length}
                yield from _model_rows(facts, bench_model(bundle, length, list(RIVALS), args.rounds))
            bundle.unlink()


def dtypes(args: argparse.Namespace) -> Iterator[Row]:
    """Yield levels of both models' dimensions in float32 and int8 beside ONNX Runtime, with what they took to compile."""
    rivals = ["onnxruntime", "onnxruntime-int8"]
    with tempfile.TemporaryDirectory() as folder:
        for name, dtype in product(("random-distilbert", "random-minilm"), ("float32", "int8")):
            start = time.perf_counter()
            bundle = _bundle(folder, name, "0,0.5,0.75,0.8125", 4, "--seq-len", "128", "--dtype", dtype)
            seconds = time.perf_counter() - start
            with load(bundle) as opened:
                sections = {row["level"]: row["bytes"] for row in opened.metadata["weight_sections"]}
            facts: Row = {"model": name, "dtype": dtype, "prune_and_compile_s": seconds}
            for row in _model_rows(facts, bench_model(bundle, None, rivals, args.rounds)):
                what = str(row["what"])
                level = int(what.removeprefix("level ")) if what.startswith("level") else None
                yield row | {"weights_mib": sections[level] / 2**20 if level is not None else ""}
            bundle.unlink()


def architectures(args: argparse.Namespace) -> Iterator[Row]:
    """Yield a dense and a 75 % sparse level (V=4) of every architecture, 128 tokens or one image, and each fp32 rival."""
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models or ARCHITECTURES:
            bundle = _bundle(folder, name, "0,0.75", 4)
            yield from _model_rows({"model": name}, bench_model(bundle, None, None, args.rounds))
            bundle.unlink()


def density(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the latency of ten levels of one model, densities 1.0 to 0.1: it must never rise."""
    with tempfile.TemporaryDirectory() as folder:
        for group in (1, 4):
            sparsity = ",".join(f"{0.1 * i:.1f}" for i in range(10))
            result = bench_model(_bundle(folder, "random-minilm", sparsity, group), None, ["torch"], args.rounds)
            before = None
            for d, t in zip(result.densities, result.levels, strict=True):
                rise = t.median / before - 1.0 if before else 0.0
                yield {"group": group, "density": d, "median_ms": t.median, "rise": rise}
                before = t.median


def threads(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the levels of DistilBERT's dimensions on one thread and on two, and the rivals on two."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(folder, "random-distilbert", "0,0.5,0.75,0.9", 4, "--threads", "2")
        with load(bundle) as opened:
            inputs = opened.zeros(opened.max_length)
            for level in range(len(opened.levels)):
                opened.set_level(level)
                calls = {n: partial(_on_threads, opened, n, inputs) for n in (1, 2)}
                times = time_interleaved({str(n): call for n, call in calls.items()}, args.rounds)
                one, two = times["1"].median, times["2"].median
                yield {"level": level, "one_ms": one, "two_ms": two, "speedup": one / two}
        yield from _model_rows({"threads": 2}, bench_model(bundle, None, None, args.rounds, threads=2))


def _on_threads(bundle: Bundle, count: int, inputs: dict[str, Any]) -> None:
    if bundle.threads != count:
        bundle.set_threads(count)
    bundle(**inputs)


def ops(_args: argparse.Namespace) -> Iterator[Row]:
    """Yield where the time of DistilBERT's dimensions goes, 128 tokens, by kernel family, at a dense and a sparse level."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(folder, "random-distilbert", "0,0.75", 4)
        for level in range(2):
            for row in measure_ops(bundle, level):
                facts = asdict(row) | {"gflops": row.gflops, "gbytes_per_s": row.gbytes_per_s}
                yield {"level": level} | {k: v for k, v in facts.items() if k != "symbol"}


def shares(args: argparse.Namespace) -> Iterator[Row]:
    """Yield how much of a model's time at 128 tokens has no kernel of its own, at a dense and a sparse level."""
    for name in args.models or POSITIONED:
        with tempfile.TemporaryDirectory() as folder:
            bundle = _bundle(folder, name, "0,0.75", 4, "--seq-len", "128", "--no-verify")
            for level in range(2):
                kernels = measure_ops(bundle, level)
                slow = [row for row in kernels if row.family == "elementwise"]
                yield {
                    "model": name,
                    "level": level,
                    "ms": sum(row.ms for row in kernels),
                    "elementwise": sum(row.share for row in slow),
                    "calls": sum(row.calls for row in slow),
                    "largest": slow[0].symbol if slow else "",
                    "its_share": slow[0].share if slow else 0.0,
                }


def compile_(args: argparse.Namespace) -> Iterator[Row]:
    """Yield seconds and peak memory of rt3 compile for 3 levels at 2 lengths, and of the same again from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"RT3_CACHE_DIR": f"{folder}/cache"}
        for name, again in product(("random-minilm", "random-distilbert"), (False, True)):
            checkpoint, bundle = Path(folder) / f"{name}.ckpt", Path(folder) / f"{name}.so"
            if not again:
                _rt3("prune", name, "-o", checkpoint)
            start = time.perf_counter()
            facts = _compiled(checkpoint, bundle, environment)
            yield {
                "model": name,
                "from_cache": again,
                "seconds": facts["seconds"],
                "seconds_of_process": time.perf_counter() - start,
                "peak_gib": facts["peak_gib"],
                "bundle_mib": bundle.stat().st_size / 2**20,
            }


def _compiled(checkpoint: Path, bundle: Path, environment: dict[str, str], *options: str) -> dict[str, float]:
    """Compile at two lengths in a process of its own and return what it took, imports included, Python's own start not."""
    code = """
import json, resource, sys, time
from rt3_tvm.cli.main import main
def used():
    return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
def cpu(usage):
    return sum(u.ru_utime + u.ru_stime for u in usage)
start, before = time.perf_counter(), cpu(used())
assert main(sys.argv[1:]) == 0
seconds, usage = time.perf_counter() - start, used()
facts = {"seconds": seconds, "cpu_seconds": cpu(usage) - before, "peak_gib": max(u.ru_maxrss for u in usage) / 2**20}
print(json.dumps(facts))
"""
    command = [sys.executable, "-c", code, "compile", checkpoint, "-o", bundle, "--seq-len", "32,128", *options]
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True, env=environment)
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def verify(args: argparse.Namespace) -> Iterator[Row]:
    """Yield what verification adds to rt3 compile of MiniLM's dimensions, for this machine and for a Cortex-A76: medians."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, bundle = Path(folder) / "m.ckpt", Path(folder) / "m.so"
        _rt3("prune", "random-minilm", "-o", checkpoint)
        for core in VERIFIED_FOR:
            device, cluster = arm_ladder.CORES.get(core, (core, ""))
            options = ("--no-cache", "--device", device, *(("--cluster", cluster) if cluster else ()))
            sides = ((), ("--no-verify",))
            rounds = [
                [_compiled(checkpoint, bundle, dict(os.environ), *options, *side) for side in sides]
                for _ in range(min(args.rounds, FEW_ROUNDS))
            ]
            row: Row = {"core": core}
            for unit in ("seconds", "cpu_seconds"):
                whole, without = (median(facts[i][unit] for facts in rounds) for i in range(len(sides)))
                row |= {unit: whole, f"{unit}_unverified": without, f"share_of_{unit}": 1.0 - without / whole}
            yield row


def _c_program(name: str) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, bundle, program = (Path(folder) / n for n in ("m.ckpt", "m.so", name))
        _rt3("prune", "random-minilm", "-o", checkpoint)
        _rt3("compile", checkpoint, "-o", bundle, "--seq-len", "128")
        source = HERE / f"{name}.c"
        command = [
            "cc",
            "-std=c11",
            "-O2",
            source,
            f"-I{runtime_directory()}",
            bundle,
            f"-Wl,-rpath,{folder}",
            "-o",
            program,
        ]
        subprocess.run([str(c) for c in command], check=True)
        facts = json.loads(subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout)
        yield {"bundle_bytes": bundle.stat().st_size} | facts


def switch(_args: argparse.Namespace) -> Iterator[Row]:
    """Yield the time of a level switch and of the calls after it."""
    yield from _c_program("switch")


def memory(_args: argparse.Namespace) -> Iterator[Row]:
    """Yield the peak resident memory of a process that ran every level."""
    yield from _c_program("memory")


def arm(args: argparse.Namespace) -> Iterator[Row]:
    """Yield what an inference of MiniLM's dimensions (V=4) executes on ARM cores, by family and kind of instruction."""
    with tempfile.TemporaryDirectory() as folder:
        for core in args.cores:
            device, cluster = arm_ladder.CORES[core]
            options = ("--seq-len", "32,128", "--device", device, "--cluster", cluster, "--dtype", args.dtype)
            bundle = _bundle(folder, "random-minilm", "0,0.5,0.75,0.9", 4, *options)
            yield from arm_ladder.rows(core, bundle)
            bundle.unlink()


def arm_dtypes(args: argparse.Namespace) -> Iterator[Row]:
    """Yield what an inference of MiniLM's dimensions (V=4, 128 tokens) executes in each element type that a core has."""
    with tempfile.TemporaryDirectory() as folder:
        for core in args.cores:
            device, cluster = arm_ladder.CORES[core]
            elements = CpuShape.of(arm_ladder.cluster_of(core)).elements
            rivals: dict[str, int] = {}
            for dtype in (element.dtype for element in elements):
                options = ("--seq-len", "128", "--device", device, "--cluster", cluster, "--dtype", dtype)
                bundle = _bundle(folder, "random-minilm", "0,0.5,0.75,0.8125", 4, *options)
                rivals = rivals or arm_rival.instructions(core, bundle, 128)
                yield from arm_ladder.by_dtype(core, dtype, bundle, rivals)


def arm_loops(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the inner loop of a 768x768 layer, 128 tokens, dense and by V (int8 in quads too), as it is in the code for ARM."""
    for core in args.cores:
        yield from arm_ladder.loops(core, args.dtype)


def tune(args: argparse.Namespace) -> Iterator[Row]:
    """Yield what tuning gains for each matrix of MiniLM's and DistilBERT's dimensions, then over all of them."""
    found = []
    for row in tuning.rows(args.dims, args.log, args.trials, args.budget, lambda line: print(line, file=sys.stderr)):
        found.append(row)
        yield row
    yield tuning.summary(found)


def peak(_args: argparse.Namespace) -> Iterator[Row]:
    """Yield what one core can do: multiply-adds on registers, and with a load each (the ceiling of V=1)."""
    yield core_limits()


CASES: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "linear": linear,
    "few": few,
    "families": families,
    "model": model,
    "dtypes": dtypes,
    "architectures": architectures,
    "density": density,
    "threads": threads,
    "ops": ops,
    "shares": shares,
    "compile": compile_,
    "verify": verify,
    "switch": switch,
    "memory": memory,
    "peak": peak,
    "tune": tune,
    "arm": arm,
    "arm_dtypes": arm_dtypes,
    "arm_loops": arm_loops,
}
WHEN_NAMED = ("shares", "tune", "arm", "arm_dtypes", "arm_loops")
"""Cases that take hours, or an emulator rather than an idle machine, or that nothing is compared in."""


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--groups", type=lambda t: [int(v) for v in t.split(",")], default=list(GROUPS))
    parser.add_argument("--models", type=lambda t: t.split(","), help="of architectures and shares")
    parser.add_argument(
        "--cores",
        type=lambda t: t.split(","),
        default=list(arm_ladder.CORES),
        help="of the cases of arm; default A7,A53,A55,A76,X1",
    )
    parser.add_argument(
        "--dtype", default="float32", help="of arm, linear and few: what linear layers multiply; default float32"
    )
    parser.add_argument("--dims", type=lambda t: t.split(","), default=list(tuning.WIDTHS), help="of tune")
    parser.add_argument("--log", type=Path, default=Path("build/tune"), help="of tune: folder of its log, gone on with")
    parser.add_argument("--trials", type=int, default=64, help="of tune: for each matrix")
    parser.add_argument("--budget", type=DURATION.read, help="of tune: of tuning, as 90s, 30m or 2h; default none")
    parser.add_argument("--json", action="store_true", help="one JSON object a row instead of a table")
    args = parser.parse_args()
    for name in args.cases or (case for case in CASES if case not in WHEN_NAMED):
        head: list[str] = []
        if not args.json:
            print(f"\n## {name} ({machine()}, one thread but for `threads`)\n", flush=True)
        for row in CASES[name](args):
            if args.json:
                print(json.dumps({"case": name} | row), flush=True)
                continue
            if list(row) != head:
                head = list(row)
                print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
            print(f"| {' | '.join(_cell(v) for v in row.values())} |", flush=True)


if __name__ == "__main__":
    main()
