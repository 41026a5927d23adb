"""Element types through the compiler: what is asked for by level and by matrix, and what of it a core has."""

import re
from dataclasses import replace

import pytest
from tvm import relax, tirx

from rt3_tvm import CompileOptions, compile, device
from rt3_tvm.errors import Rt3Error
from rt3_tvm.frontend import import_model
from rt3_tvm.report import summary
from rt3_tvm.schedules import KERNEL_ATTR
from rt3_tvm.schedules.cpu import CpuShape
from rt3_tvm.schedules.layout import FLOAT16, INT8
from rt3_tvm.transform.context import VariantContext, references_of
from rt3_tvm.transform.pipeline import level_phases, run_phases, shared_phases

A76 = CpuShape.of(device.load("rk3588").with_cluster("big0").cluster)
A53 = CpuShape.of(device.load("rk3399").with_cluster("little").cluster)
LENGTH = 20


@pytest.fixture(scope="module")
def imported(tiny_checkpoint):
    return import_model(tiny_checkpoint.dense_model(), 1, LENGTH)


def lowered(imported, checkpoint, **asked):
    context = VariantContext(0, 1, LENGTH, A76, imported.parameters, checkpoint.levels[0].matrices)
    shared = run_phases(imported.mod, shared_phases())
    return run_phases(shared, level_phases(replace(context, **asked)))


def calls_of(mod, family):
    """Return the arguments of each call of a family."""
    bindings = (b.value for block in mod["main"].body.blocks for b in block.bindings)
    calls = [v for v in bindings if isinstance(v, relax.Call) and v.op.name == "relax.call_tir"]
    return [list(c.args[1].fields) for c in calls if mod[c.args[0]].attrs[KERNEL_ATTR] == family]


def values_of(mod):
    """Return the element type of each packed weight, by its name."""
    refs = references_of(mod["main"].attrs)
    params = mod["main"].params[-len(refs) :]
    return {r.weight: str(p.ty.dtype) for p, r in zip(params, refs, strict=True) if r.kind == "values"}


def test_layers_that_read_one_tensor_share_its_conversion(imported, tiny_checkpoint):
    mod = lowered(imported, tiny_checkpoint, element=FLOAT16)
    layers = tiny_checkpoint.dense_model().config.num_hidden_layers
    converted = [args[0] for args in calls_of(mod, "convert")]
    assert (
        len(converted) == len(set(converted)) == 4 * layers
    )  # of q, k and v; of attention's output; of both of the FFN
    assert len([f for _, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)]) > 0
    assert not calls_of(lowered(imported, tiny_checkpoint), "convert")


def test_matrices_are_left_out_by_glob(imported, tiny_checkpoint):
    whole = values_of(lowered(imported, tiny_checkpoint, element=FLOAT16))
    assert set(whole.values()) == {"float16"}
    kept = values_of(lowered(imported, tiny_checkpoint, element=FLOAT16, keep_float=("*.query.weight", "pooler*")))
    wanted = {n: "float32" if "query" in n or n.startswith("pooler") else "float16" for n in whole}
    assert kept == wanted and len(set(kept.values())) == 2


def test_attention_is_float16_where_layers_are_int8(imported, tiny_checkpoint):
    layers = tiny_checkpoint.dense_model().config.num_hidden_layers

    def count(family, **asked):
        return len(calls_of(lowered(imported, tiny_checkpoint, **asked), family))

    assert count("attention_float16", element=INT8) == layers and not count("attention", element=INT8)
    kept = {"element": INT8, "keep_float": ("attention",)}
    for asked in ({}, kept, {"element": FLOAT16}, {"element": INT8, "cpu": A53}):
        assert count("attention", **asked) == layers and not count("attention_float16", **asked)


def test_levels_of_two_types_are_verified_each_by_its_own_tolerance(tiny_checkpoint, tmp_path):
    levels = len(tiny_checkpoint.levels)
    dtypes = ("float32",) + ("float16",) * (levels - 1)
    options = CompileOptions("rk3588", cluster="big0", lengths=(16,), dtype=dtypes, keep_float=("*.query.weight",))
    metadata = compile(tiny_checkpoint, tmp_path / "mixed.so", options).metadata
    assert [row.get("dtype", "float32") for row in metadata["levels"]] == list(dtypes)
    verified = metadata["verified"]
    assert verified["tolerance"] == {"float32": 5e-5, "float16": 2**-7}
    errors = {row["level"]: row["error"] for row in verified["errors"]}
    assert errors[0] < 1e-5 < min(errors[level] for level in range(1, levels))
    found = {
        name: [row.get("dtype", "float32") for row in matrix["levels"]] for name, matrix in metadata["matrices"].items()
    }
    for name, row in found.items():
        assert row == (["float32"] * levels if "query" in name else list(dtypes)), name
    tables = summary.tables(summary.describe(tmp_path / "mixed.so"))
    heads = [column.header for table in tables if hasattr(table, "columns") for column in table.columns]
    assert "dtype" in heads


def test_float16_weights_take_half_of_the_room(tiny_checkpoint, tmp_path):
    bytes_of = {}
    for dtype in ("float32", "float16"):
        options = CompileOptions("rk3588", cluster="big0", lengths=(16,), dtype=(dtype,), verify=False)
        metadata = compile(tiny_checkpoint, tmp_path / f"{dtype}.so", options).metadata
        bytes_of[dtype] = {s["level"]: s["bytes"] for s in metadata["weight_sections"]}
        assert all("dtype" not in row for row in metadata["levels"]) == (dtype == "float32")
    for level in range(len(tiny_checkpoint.levels)):
        assert 0.4 < bytes_of["float16"][level] / bytes_of["float32"][level] < 0.7  # offsets are what they were


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dtype": ("float16",)}, r"dtype float16 is not for \S+ of host: choose from float32"),
        ({"dtype": ("float32", "float32")}, "dtype float32,float32: give one, or one for each of the checkpoint's 3"),
        ({"keep_float": ("no.such*",)}, r"keep_float 'no.such\*': the model has no parameter of such a name"),
    ],
)
def test_what_cannot_be_done_is_said(tiny_checkpoint, tmp_path, asked, message):
    with pytest.raises(Rt3Error, match=message) as error:
        compile(tiny_checkpoint, tmp_path / "none.so", CompileOptions(**asked))
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "none.so").exists()


def test_an_unknown_type_is_refused_before_anything_is_read():
    with pytest.raises(Rt3Error, match=re.escape("dtype 'float8' is unknown: choose from float32, float16, int8")):
        CompileOptions(dtype=("float8",))
