"""Where the weights of a bundle lie: once what levels share, and each level's own on pages of its own."""

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from rt3_tvm.codegen.weights import ALIGNMENT, WEIGHTS_ALIGNMENT, WeightStore
from rt3_tvm.runtime.check import SHARED, WEIGHTS_SECTION, read_metadata
from rt3_tvm.schedules.linear_decisions import LinearPacking
from rt3_tvm.transform.context import UNPRUNED, WeightRef

EMBEDDINGS = "embeddings.word_embeddings.weight"
PRUNED = "encoder.layer.0.intermediate.dense"


@pytest.fixture
def store(tiny_checkpoint):
    return WeightStore(tiny_checkpoint)


def homes(store):
    """Return the level in whose section each array lies, by number."""
    layout = store.lay_out()
    return [
        next(s.level for s in layout.sections if s.offset <= offset < s.offset + s.bytes) for offset in layout.offsets
    ]


@pytest.mark.parametrize(
    ("users", "home"), [([UNPRUNED], SHARED), ([0, 2], SHARED), ([1, UNPRUNED], SHARED), ([1, 1], 1), ([2], 2)]
)
def test_what_two_levels_use_is_shared(store, users, home):
    (number,) = {store.add(np.arange(5), level) for level in users}
    assert homes(store)[number] == home


def test_levels_share_a_bias_and_a_dense_matrix_and_no_cut_one(store):
    packing = LinearPacking(4, 1)
    values, bias = (
        [store.resolve(WeightRef(kind, f"{PRUNED}.weight", f"{PRUNED}.bias", level, packing)) for level in (0, 1, 2)]
        for kind in ("values", "bias")
    )
    dense = [store.resolve(WeightRef("raw", EMBEDDINGS)) for _ in range(3)]
    found = homes(store)
    assert [found[n] for n in values] == [0, 1, 2]
    assert len(set(bias)) == len(set(dense)) == 1 and found[bias[0]] == found[dense[0]] == SHARED


def test_the_blob_has_every_array_where_the_layout_says(store, tmp_path, rng):
    arrays = [rng.standard_normal(size).astype(np.float32) for size in (1, 17, 5000, 16, 3)]
    levels = (2, UNPRUNED, 0, 2, UNPRUNED)
    numbers = [store.add(array, level) for array, level in zip(arrays, levels, strict=True)]
    layout = store.lay_out()
    store.write(tmp_path / "weights.bin", layout)
    blob = (tmp_path / "weights.bin").read_bytes()
    for number, array in zip(numbers, arrays, strict=True):
        offset = layout.offsets[number]
        assert offset % ALIGNMENT == 0 and blob[offset : offset + array.nbytes] == array.tobytes()
    assert [(s.level, s.offset, s.bytes) for s in layout.sections] == [
        (SHARED, 0, 192),  # 17 and 3 floats, each on lines of its own
        (0, WEIGHTS_ALIGNMENT, 20032),
        (1, 3 * WEIGHTS_ALIGNMENT, 0),
        (2, 3 * WEIGHTS_ALIGNMENT, 128),
    ]
    assert len(blob) == layout.size == 3 * WEIGHTS_ALIGNMENT + 128


def test_sections_of_a_bundle(tiny_checkpoint, tiny_bundle):
    facts = read_metadata(tiny_bundle)
    with tiny_bundle.open("rb") as file:
        section = ELFFile(file).get_section_by_name(WEIGHTS_SECTION)
        address, blob = section["sh_addr"], section.data()
    rows = facts["weight_sections"]
    assert [row["level"] for row in rows] == [SHARED, 0, 1, 2] and all(row["bytes"] for row in rows)
    assert all((address + row["offset"]) % WEIGHTS_ALIGNMENT == 0 for row in rows)
    # They and the rest of each one's last page are all that there is, but for the byte that ends the section.
    ends = [row["offset"] + row["bytes"] for row in rows]
    gaps = [after["offset"] - end for after, end in zip(rows[1:], ends, strict=False)]
    assert all(0 <= gap < WEIGHTS_ALIGNMENT for gap in gaps)
    assert sum(row["bytes"] for row in rows) + sum(gaps) == ends[-1] == facts["weights_bytes"] == len(blob) - 1
    dense = tiny_checkpoint.weights[EMBEDDINGS].tobytes()
    assert blob.count(dense) == 1 and blob.index(dense) < ends[0]
    # A sparser level has less of its own.
    assert rows[1]["bytes"] > rows[2]["bytes"] > rows[3]["bytes"]
