"""The main job on a real encoder: prune MiniLM to 3 levels, compile them into one library, walk the frequencies.

Run by ``make demo``. What it builds stays in build/demo, so that a second run starts in seconds. With RT3_DATA set to a
folder that holds stsb/sts-dev.csv it also prints Spearman's correlation on STS-B dev.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from transformers import AutoTokenizer

import rt3_tvm
from rt3_tvm import device, model
from rt3_tvm.timing import Timing, time_interleaved

BUILD = Path("build/demo")
CHECKPOINT, BUNDLE = BUILD / "minilm.ckpt", BUILD / "minilm.so"
LENGTHS = (32, 128)
PAIRS = (
    ("A man is playing a guitar.", "Someone plays an instrument."),
    ("The phone's battery is almost empty.", "My mobile needs to be charged soon."),
    ("A cat sleeps on the sofa.", "The stock market fell sharply today."),
)


def build(console: Console) -> tuple[rt3_tvm.Checkpoint, "rt3_tvm.runtime.Bundle"]:
    """Return the checkpoint and the bundle, made on the first run."""
    BUILD.mkdir(parents=True, exist_ok=True)
    if not CHECKPOINT.is_dir():
        console.print("pruning MiniLM-L6 to 3 levels ...")
        rt3_tvm.prune(model.load("minilm"), rt3_tvm.PruneOptions(), model.source_directory("minilm")).save(CHECKPOINT)
    checkpoint = rt3_tvm.Checkpoint.load(CHECKPOINT)
    if not BUNDLE.is_file() or BUNDLE.stat().st_mtime < (CHECKPOINT / "checkpoint.json").stat().st_mtime:
        console.print(f"compiling {len(checkpoint.levels)} levels for lengths {LENGTHS} ...")
        report = rt3_tvm.compile(checkpoint, BUNDLE, rt3_tvm.CompileOptions(lengths=LENGTHS))
        console.print(f"compiled in {sum(report.seconds.values()):.0f} s, {report.bytes / 2**20:.0f} MiB")
    return checkpoint, rt3_tvm.load(BUNDLE)


def embed(output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mean over real tokens, normalised: (batch, hidden)."""
    weights = mask[..., None].astype(np.float32)
    mean = (output * weights).sum(1) / weights.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def encode(bundle: "rt3_tvm.runtime.Bundle", tokenizer: AutoTokenizer, sentences: list[str]) -> np.ndarray:
    """Return the embeddings of sentences, one run each."""
    rows = []
    for sentence in sentences:
        tokens = tokenizer(sentence, return_tensors="np", truncation=True, max_length=bundle.max_length)
        output = bundle(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        rows.append(embed(output["last_hidden_state"], tokens["attention_mask"])[0])
    return np.stack(rows)


def agreement(checkpoint: rt3_tvm.Checkpoint, bundle: "rt3_tvm.runtime.Bundle", inputs: dict) -> tuple[float, float]:
    """Return the largest error against the masked PyTorch model, and the cosine between the two."""
    ours = bundle(**inputs)["last_hidden_state"]
    with torch.inference_mode():
        reference = checkpoint.torch_model(bundle.level)(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    theirs = reference.last_hidden_state.numpy()
    cosine = float((ours * theirs).sum() / (np.linalg.norm(ours) * np.linalg.norm(theirs)))
    return float(np.abs(ours - theirs).max()), cosine


def latencies(checkpoint: rt3_tvm.Checkpoint, bundle: "rt3_tvm.runtime.Bundle", inputs: dict) -> dict[str, Timing]:
    """Return the times of every level and of dense PyTorch, one thread, taking turns."""
    torch.set_num_threads(1)
    dense, tensors = checkpoint.dense_model(), {k: torch.from_numpy(v) for k, v in inputs.items()}

    def run_level(level: int) -> None:
        bundle.set_level(level)
        bundle(**inputs)

    def run_dense() -> None:
        with torch.inference_mode():
            dense(**tensors)

    calls = {f"level {i}": partial(run_level, i) for i in range(len(bundle.levels))} | {"torch": run_dense}
    return time_interleaved(calls, rounds=9)


def encode_dense(dense: torch.nn.Module, tokenizer: AutoTokenizer, sentences: list[str]) -> np.ndarray:
    """Return the embeddings of sentences by the dense PyTorch model, 64 at a time."""
    rows = []
    for start in range(0, len(sentences), 64):
        batch = sentences[start : start + 64]
        tokens = tokenizer(batch, return_tensors="pt", padding=True, truncation=True, max_length=max(LENGTHS))
        with torch.inference_mode():
            output = dense(**tokens).last_hidden_state
        rows.append(embed(output.numpy(), tokens["attention_mask"].numpy()))
    return np.concatenate(rows)


def sts_dev(encoder: Callable[[list[str]], np.ndarray], path: Path) -> float:
    """Return Spearman's correlation with the human scores of STS-B dev (tab-separated, unquoted)."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    left, right = (encoder([r[i] for r in rows]) for i in (5, 6))
    return float(spearmanr((left * right).sum(1), [float(r[4]) for r in rows]).statistic)


def pair_scores(encoder: Callable[[list[str]], np.ndarray]) -> str:
    """Return the cosines of the sentence pairs."""
    first, second = (encoder([p[i] for p in PAIRS]) for i in (0, 1))
    return " ".join(f"{s:.2f}" for s in (first * second).sum(1))


def main() -> None:
    """Print the table."""
    console = Console(width=None if Console().is_terminal else 140)
    checkpoint, bundle = build(console)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, local_files_only=True)
    rng = np.random.default_rng(0)
    inputs = {"input_ids": rng.integers(0, 30522, (1, 128)), "attention_mask": np.ones((1, 128), np.int64)}
    times = latencies(checkpoint, bundle, inputs)
    data = Path(os.environ["RT3_DATA"]) / "stsb" / "sts-dev.csv" if "RT3_DATA" in os.environ else None

    table = Table(title="MiniLM-L6, 128 tokens, 1 thread")
    heads = ["GHz", "level", "density", "median ms", "min-max ms", "vs PyTorch", "max error", "cosine", "pair scores"]
    for head in heads + (["STS-B dev"] if data else []):
        table.add_column(head, justify="right")
    dense, t = partial(encode_dense, checkpoint.dense_model(), tokenizer), times["torch"]
    reference = [
        "",
        "PyTorch",
        "1.000",
        f"{t.median:.2f}",
        f"{t.low:.2f}-{t.high:.2f}",
        "1.00x",
        "",
        "",
        pair_scores(dense),
    ]
    table.add_row(*reference, *([f"{sts_dev(dense, data):.4f}"] if data else []), end_section=True)
    frequencies = [o.hz for o in device.load("host").cluster.opps] or list(device.HOST_LABELS_HZ)
    seen: dict[int, list[str]] = {}
    for hz in frequencies:
        bundle.set_frequency(hz)
        level = bundle.level
        if level not in seen:
            t = times[f"level {level}"]
            error, cosine = agreement(checkpoint, bundle, inputs)
            scores = pair_scores(partial(encode, bundle, tokenizer))
            row = [
                f"{bundle.levels[level].density:.3f}",
                f"{t.median:.2f}",
                f"{t.low:.2f}-{t.high:.2f}",
                f"{times['torch'].median / t.median:.2f}x",
                f"{error:.1e}",
                f"{cosine:.6f}",
                scores,
            ]
            seen[level] = row + ([f"{sts_dev(partial(encode, bundle, tokenizer), data):.4f}"] if data else [])
        table.add_row(f"{hz / 1e9:g}", str(level), *seen[level])
    console.print(table)
    if not device.load("host").cluster.opps:
        console.print("This machine shows no cpufreq: the frequencies are labels, the latencies are at its one clock.")
    for i, (a, b) in enumerate(PAIRS):
        console.print(f"pair {i + 1}: {a!r} / {b!r}")


if __name__ == "__main__":
    main()
