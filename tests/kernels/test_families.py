"""The other families against PyTorch; and for every row of SCHEDULES that its code is vector code."""

import re
from functools import cache

import numpy as np
import pytest
import torch
import tvm
from tvm import te, tirx

from rt3_tvm.codegen.kernels import lower, machine_code, task_count, with_c_signature
from rt3_tvm.schedules import FLOPS_ATTR, SCHEDULES, border, kernel, layer_norm, matmul, rotary, scheduled
from rt3_tvm.schedules.examples import FEW, SMALL
from rt3_tvm.schedules.layer_norm import NormShape
from rt3_tvm.schedules.layout import FEATURE_MAJOR
from rt3_tvm.schedules.packing import pack_rows
from rt3_tvm.schedules.relative_scores import RelativeShape, position_block, relative_scores
from rt3_tvm.transform.lower.matmul import matmul_shape
from tests.kernels.harness import CLUSTER, CPU, from_tiles, run_kernel, to_tiles


def assembly_of(module):
    return machine_code(lower(module), CLUSTER.target_dict()).inspect_source("s")


SHAPES = [(1, 128, 96), (2, 7, 96), (3, 20, 50)]


@pytest.mark.parametrize(("batch", "length", "features"), SHAPES)
def test_layout_round_trip(rng, batch, length, features):
    x = rng.standard_normal((batch, length, features)).astype(np.float32)
    tiles = np.full_like(to_tiles(x), np.nan)
    run_kernel("to_feature_major", border.to_feature_major(FEATURE_MAJOR, batch, length, features), x, tiles)
    np.testing.assert_array_equal(tiles, to_tiles(x))
    back = np.full_like(x, np.nan)
    run_kernel("from_feature_major", border.from_feature_major(FEATURE_MAJOR, batch, length, features), tiles, back)
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize(("batch", "length", "features"), SHAPES)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_embedding(rng, batch, length, features, dtype):
    table = rng.standard_normal((300, features)).astype(np.float32)
    ids = rng.integers(0, 300, batch * length).astype(dtype)
    want = to_tiles(table[ids].reshape(batch, length, features))
    y = np.full_like(want, np.nan)
    run_kernel("embedding", border.embedding(FEATURE_MAJOR, batch, length, 300, features, dtype), table, ids, y)
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize(("batch", "length"), [(1, 128), (2, 7), (3, 20)])
@pytest.mark.parametrize("group", [1, 3])
def test_pattern_embedding(rng, batch, length, group):
    rows, features, kept = 300, 50, 12
    table = rng.standard_normal((rows, features)).astype(np.float32)
    columns = np.sort(rng.permuted(np.tile(np.arange(features), (rows // group, 1)), axis=1)[:, :kept], axis=1)
    valid = np.arange(kept)[None] < rng.integers(kept - 2, kept + 1, (rows // group, 1))
    mask = np.zeros((rows // group, features), np.bool_)
    np.put_along_axis(mask, columns, valid, axis=1)
    packed = pack_rows(table, columns.astype(np.int32), valid)
    ids = rng.integers(0, rows, batch * length).astype(np.int32)
    want = to_tiles((table * np.repeat(mask, group, axis=0))[ids].reshape(batch, length, features))
    y = np.full_like(want, np.nan)
    func = border.pattern_embedding(FEATURE_MAJOR, batch, length, rows, features, kept, group, ("uint16", "int32"))
    run_kernel("pattern_embedding", func, packed.values, packed.offsets, ids, y)
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize(("batch", "length", "features"), SHAPES)
@pytest.mark.parametrize(("residual", "keep_sum"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("centred", [True, False])
def test_norm(rng, batch, length, features, residual, keep_sum, centred):
    x, r = (3 + rng.standard_normal((batch, length, features)).astype(np.float32) for _ in range(2))
    gamma, beta = (rng.standard_normal(features).astype(np.float32) for _ in range(2))
    tiles = to_tiles(x)
    y = np.full_like(tiles, np.nan)
    func = layer_norm.layer_norm(NormShape(len(tiles), features, 1e-5, centred, residual, keep_sum))
    total = [np.full_like(tiles, np.nan)] if keep_sum else []
    run_kernel("layer_norm", func, tiles, to_tiles(r), gamma, beta, y, *total)
    source, scales = torch.from_numpy(x + r if residual else x), [torch.from_numpy(s) for s in (gamma, beta)]
    if centred:
        want = torch.nn.functional.layer_norm(source, (features,), *scales, 1e-5)
    else:
        want = torch.nn.functional.rms_norm(source, (features,), scales[0], 1e-5)
    for kept in total:
        np.testing.assert_array_equal(from_tiles(kept, batch, length), x + r)
    np.testing.assert_allclose(from_tiles(y, batch, length), want, atol=1e-5, rtol=0)


def test_rotary(rng):
    batch, length, heads, dim = 2, 20, 3, 8
    x = rng.standard_normal((batch, heads, length, dim)).astype(np.float32)
    angles = np.outer(np.arange(length), rng.random(dim // 2)).astype(np.float32)
    cos, sin = (np.concatenate([f(angles)] * 2, axis=1)[None].astype(np.float32) for f in (np.cos, np.sin))
    rotated = np.concatenate([-x[..., dim // 2 :], x[..., : dim // 2]], axis=-1)
    want = (x * cos + rotated * sin).transpose(0, 2, 1, 3).reshape(batch, length, -1)
    tiles = to_tiles(x.transpose(0, 2, 1, 3).reshape(batch, length, -1))
    y = np.full_like(tiles, np.nan)
    run_kernel(
        "rotary", rotary.rotary(FEATURE_MAJOR, batch, length, heads, dim), tiles, to_tiles(cos), to_tiles(sin), y
    )
    np.testing.assert_allclose(from_tiles(y, batch, length), want, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("queries", "positions", "keys", "shift", "one"),
    [(20, 60, 40, 1, True), (5, 26, 16, 2, False), (35, 2, 2, 0, True)],
)
def test_relative_scores_without_anything_beside_them(rng, queries, positions, keys, shift, one):
    batch, heads, dim = 2, 3, 8
    q = rng.standard_normal((batch, queries, heads, dim)).astype(np.float32)
    r = rng.standard_normal((1 if one else batch, positions, heads, dim)).astype(np.float32)
    row, key = np.arange(queries)[:, None], np.arange(keys)[None]
    places = r[:, shift * (queries - row) + key]  # (.., queries, keys, heads, dim)
    want = np.einsum("bqhd,bqkhd->bhqk", q, np.broadcast_to(places, (batch, *places.shape[1:])))
    shape = RelativeShape(batch, queries, heads, dim, positions, keys, shift, shared=one)
    y = np.full((batch * heads * shape.tiles, keys, 16), np.nan, np.float32)
    func = relative_scores(shape, position_block(shape, CPU))
    none = [np.full((1, 1, 1), np.nan, np.float32)] * 4
    run_kernel("relative_scores", func, *(to_tiles(t.reshape(*t.shape[:2], -1)) for t in (q, r)), *none, y)
    got = from_tiles(y, batch * heads, queries).reshape(want.shape)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 3, 33, 20), (2, 3, 20, 64)),
        ((6, 7, 5), (6, 5, 41)),
        ((2, 3, 1, 9), (1, 3, 9, 17)),
        ((2, 3, 8, 9), (2, 1, 9, 1)),
        ((4, 3, 8, 9), (9, 35)),
        ((16, 7), (3, 7, 128)),
    ],
)
def test_matmul(rng, left, right):
    a, b = (rng.standard_normal(s).astype(np.float32) for s in (left, right))
    want = a.astype(np.float64) @ b
    shape = matmul_shape(left, right)
    c = np.full((shape.batch, shape.rows, shape.columns), np.nan, np.float32)
    func = matmul.matmul(shape, matmul.register_block(shape, CPU))
    operands = a.reshape(shape.left.count, shape.rows, shape.inner), b.reshape(shape.right.count, *right[-2:])
    run_kernel("matmul", func, *operands, c)
    np.testing.assert_allclose(c.reshape(want.shape), want, atol=1e-5, rtol=0)


def test_what_is_broadcast_in_pieces_is_left_to_tvm():
    assert matmul_shape((2, 1, 4, 8, 8), (2, 3, 4, 8, 8)) is None
    assert matmul_shape((8,), (8, 8)) is None


def test_elementwise_with_a_reduction_in_the_middle(rng):
    x = te.placeholder((5, 32), "float32", name="x")
    k = te.reduce_axis((0, 32), "k")
    total = te.compute((5,), lambda i: te.sum(x[i, k], axis=k), name="total")
    doubled = te.compute((5, 32), lambda i, j: x[i, j] * tirx.const(2.0, "float32"), name="doubled")
    y = te.compute((5, 32), lambda i, j: doubled[i, j] - total[i], name="y")
    data = rng.standard_normal((5, 32)).astype(np.float32)
    out = np.full_like(data, np.nan)
    run_kernel("elementwise", te.create_prim_func([x, y]), data, out)
    np.testing.assert_allclose(out, 2 * data - data.sum(1, keepdims=True), atol=1e-5)


COPIES = {"embedding", "to_feature_major", "from_feature_major"}


@cache
def example_of(family):
    """Return the small example of a row and its kernel."""
    example = SCHEDULES[family].example(CPU, SMALL)
    return example, kernel(family, *example.arguments)


@pytest.mark.parametrize("family", SCHEDULES)
def test_each_row_computes_its_reference(family):
    example, func = example_of(family)
    buffers = [p.ty for p in func.params[len(example.inputs) :]]
    assert buffers
    outputs = [
        np.full([int(d) for d in b.shape], np.nan if b.dtype == "float32" else 99, str(b.dtype)) for b in buffers
    ]
    run_kernel(family, func, *example.inputs, *outputs)
    want = SCHEDULES[family].reference(*example.arguments, *example.inputs)
    for got, expected in zip(outputs, want, strict=True):
        assert expected.any() and got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=SCHEDULES[family].tolerance, rtol=0)


@pytest.mark.parametrize("family", SCHEDULES)
def test_each_row_counts_what_a_call_does(family):
    """Operations against the sizes of the example, bytes against its arrays."""
    (example, func), row, s = example_of(family), SCHEDULES[family], SMALL
    padded, kept = 2 * 32, {"dense_linear": 32, "few_token_linear": 8, "pattern_linear": 8}
    kept |= {"dense_linear_int8": 32, "few_token_linear_int8": 8, "pattern_linear_int8": 8, "quad_linear_int8": 8}
    flops = {
        **{
            name: 2 * s.rows * columns * (FEW if name.startswith("few_token") else padded)
            for name, columns in kept.items()
        },
        **dict.fromkeys(("attention", "attention_float16"), 4 * s.batch * s.heads * s.dim * 32 * 32),
        "matmul": 2 * s.batch * s.heads * (s.length - 1) * s.dim * (s.length + 1),
        "relative_scores": 2 * padded * s.features * (s.length + 3 + 2 * 15 + 3),
        "rotary": 3 * padded * s.features,
        "layer_norm": 12 * padded * s.features,
    }
    assert row.flops(*example.arguments) == flops.get(family, 0) == int(func.attrs[FLOPS_ATTR])
    computed = row.reference(*example.arguments, *example.inputs)
    sizes = {"convert": 2}  # of what its reference has as float16
    results = sum(a.size * (1 if a.dtype == np.int8 else sizes.get(family, 4)) for a in computed)
    looked_up = family in ("embedding", "pattern_embedding")
    assert row.bytes(func) == results + (results if looked_up else sum(i.nbytes for i in example.inputs))


@pytest.mark.parametrize("family", SCHEDULES)
def test_code_is_vector_code_without_calls(family):
    func = scheduled(example_of(family)[1], CPU)
    assert ("T.vectorized" in func.script()) == (family not in COPIES)
    module = tvm.IRModule({"k": with_c_signature(func, "k")})
    assembly = assembly_of(module)
    calls = set(re.findall(r"^\s+(?:callq?|bl)\s+(\S+)", assembly, re.MULTILINE))
    assert not {c for c in calls if "mem" not in c}, calls  # memset and memcpy are libc's own vector code
    if family in ("pattern_linear", "dense_linear", "attention"):
        assert re.search(r"vfmadd\w+ps|fmla", assembly)


@pytest.mark.parametrize("family", SCHEDULES)
def test_every_family_has_tasks_for_threads(family):
    assert task_count(scheduled(example_of(family)[1], CPU)) > 1


def test_accumulators_stay_in_registers():
    """The loop over kept columns must not touch the stack."""
    func = scheduled(example_of("pattern_linear")[1], CPU)
    module = tvm.IRModule({"k": with_c_signature(func, "k")})
    assembly = assembly_of(module)
    blocks = re.split(r"^(?=\.LBB)", assembly, flags=re.MULTILINE)
    hot = max(
        blocks,
        key=lambda b: len(re.findall(r"vfmadd\w+ps|fmla", b.split(".LBB", 2)[1] if b.startswith(".LBB") else "")),
    )
    multiplies = [line for line in hot.splitlines() if re.search(r"vfmadd\w+ps|fmla", line)]
    assert multiplies
    assert not [line for line in multiplies if re.search(r"\(%rsp|\(%rbp|\[sp", line)]
