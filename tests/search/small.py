"""A small search, as options and as a command, and what it leaves; small files of the tasks that need some."""

from rt3_tvm.pattern import PatternShape
from rt3_tvm.search import SearchOptions, folder_of
from rt3_tvm.search.journal import Journal

MODEL = "random-lm-tiny"
OPTIONS = SearchOptions(
    task="lm",
    device="odroid-xu3",
    power="published",
    tokens=35,
    deadline_s=0.024,
    block_sparsity=0.3,
    block_rows=64,
    shape=PatternShape(1, 16, 1),
    groups=(1, 4),
    patterns=8,
    candidates=2,
    grid=(0.3, 0.55, 0.65, 0.7, 0.8),
    embeddings=True,
    epochs=(1, 1, 1, 2),
    epoch_steps=3,
    children=6,
    episode_batch=3,
    child_steps=2,
    threads=1,
)
COMMAND = [
    "search", MODEL, "--task", "lm", "--device", "odroid-xu3", "--power", "published", "--seq-len", "35",
    "--deadline", "24", "--block-sparsity", "0.3", "--block-rows", "64", "--pattern-shape", "1x16", "--group", "1,4",
    "--patterns", "8", "--candidates", "2", "--grid", "0.3,0.55,0.65,0.7,0.8", "--embeddings", "--epochs", "1,1,1,2",
    "--epoch-steps", "3", "--children", "6", "--episode-batch", "3", "--child-steps", "2", "--threads", "1",
]  # fmt: skip


def rows(path, kind):
    return Journal.read(folder_of(path) / "journal.jsonl").of(kind)


def without_times(journal):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in journal.records]


STS = "g\tf\ty\t{i}\t{score}\t{first}\t{second}\n"
PAIRS = [
    ("5.0", "a man plays", "a man is playing"),
    ("0.0", "a cat sleeps", "stocks fell"),
    ("2.5", "one dog", "a dog"),
]


def sts_folder(path):
    for name in ("sts-train.csv", "sts-dev.csv", "sts-test.csv"):
        rows = (STS.format(i=i, score=s, first=a, second=b) for i, (s, a, b) in enumerate(PAIRS))
        (path / name).write_text("".join(rows), encoding="utf-8")
    return path


def rte_folder(path):
    rows = [f"{i}\tA cat sleeps {i}.\tA cat.\t{('entailment', 'not_entailment')[i % 2]}" for i in range(20)]
    for name in ("train.tsv", "dev.tsv"):
        (path / name).write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]) + "\n", encoding="utf-8")
    return path


def text_folder(path):
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        (path / name).write_text("good film\tpos\nbad film\tneg\nso so\tneutral\n", encoding="utf-8")
    return path
