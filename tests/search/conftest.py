"""Fixtures of the search: one small search for all tests that look at what a search leaves, and an encoder to prune."""

import shutil
from pathlib import Path
from string import ascii_lowercase

import pytest

from rt3_tvm import search
from rt3_tvm.search import Found, folder_of
from tests.conftest import once
from tests.search.small import MODEL, OPTIONS, PAIRS


@pytest.fixture(scope="session")
def found(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found]:
    """A small search by the controller: done once for all workers, each of which has its own copy."""
    first = once(shared / "lm.ckpt", lambda path: search(MODEL, OPTIONS, path))
    path = tmp_path_factory.mktemp("search") / "lm.ckpt"
    for source, target in ((first, path), (folder_of(first), folder_of(path))):
        shutil.copytree(source, target)
    return path, search(MODEL, OPTIONS, path)


@pytest.fixture(scope="session")
def encoder(shared: Path) -> str:
    """The directory of a BERT of 2 layers and 128 features with random weights, and of a tokenizer for a few words."""
    return str(once(shared / "encoder", _save_encoder))


def _save_encoder(path: Path) -> None:
    import torch
    import transformers

    words = {word for _, *pair in PAIRS for text in pair for word in text.split()}
    pieces = [*ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words - set(pieces)), *pieces]
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes)
    transformers.BertModel(config).save_pretrained(path)
