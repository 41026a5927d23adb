"""What the files of a checkpoint must hold: the kinds and ranges of its JSON, and how its tensors fit each other."""

import hashlib
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from rt3_tvm import schema
from rt3_tvm.errors import Rt3Error
from rt3_tvm.files import open_regular
from rt3_tvm.pattern import SparseMatrix, as_matrix

_SIZE = schema.integer(1)
_STAMP = schema.record(shape=schema.list_of(schema.integer(0)), dtype=schema.text, sha256=schema.text)
_SHAPE = schema.record(rows=_SIZE, cols=_SIZE, group=_SIZE, adjacent=schema.optional(_SIZE))
_TABLE = schema.record(
    model=schema.record(**{"class": schema.text, "config": schema.table}),
    levels=schema.list_of(
        schema.record(
            sparsity=schema.number(0, 1),
            frequency_hz=schema.optional(schema.number(0)),
            accuracy=schema.optional(schema.number()),
        ),
        at_least=1,
    ),
    matrices=schema.table_of(
        schema.record(
            shape=schema.row_of(_SIZE, _SIZE),
            block_rows=_SIZE,
            transposed=schema.flag,
            levels=schema.list_of(_SHAPE, at_least=1),
        )
    ),
    skipped=schema.table_of(schema.text),
    facts=schema.optional(schema.table),
)


def sealed_table(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table as JSON will have it, with the checksum that :func:`check_table` asks for."""
    plain = json.loads(json.dumps(table))
    return plain | {"sha256": _table_checksum(plain)}


def _table_checksum(table: dict[str, Any]) -> str:
    text = json.dumps({name: value for name, value in table.items() if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_table(table: Any, tensor_files: tuple[str, ...]) -> None:
    """Check the JSON of a checkpoint.

    Raises
    ------
    ValueError
        It was altered, or something is missing, of another kind, or out of range.
    """
    _TABLE(table, "checkpoint")
    if table.get("sha256") != _table_checksum(table):
        raise ValueError("it was altered: its checksum differs")
    schema.record(**{name: schema.table_of(_STAMP) for name in tensor_files})(table.get("tensors"), "tensors")
    levels = table["levels"]
    sparsity = [level["sparsity"] for level in levels]
    if any(a > b for a, b in pairwise(sparsity)):
        raise ValueError(f"levels of sparsity {sparsity} do not ascend")
    hz = [level.get("frequency_hz") or 0.0 for level in levels]
    if any(hz) and any(a <= b for a, b in pairwise(hz)):
        raise ValueError(f"levels for {hz} Hz do not descend")
    for name, matrix in table["matrices"].items():
        if len(matrix["levels"]) != len(levels):
            raise ValueError(f"matrices.{name} has {len(matrix['levels'])} levels of {len(levels)}")


def stamp(value: np.ndarray) -> dict[str, Any]:
    """Return what the table says of a tensor: its shape, its dtype and its SHA-256."""
    return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": hashlib.sha256(value.data).hexdigest()}


def read_tensors(path: Path, stamps: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file, checked against their stamps."""
    try:
        open_regular(path).close()
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise Rt3Error(f"'{path}' cannot be read: {error}") from error
    _report(path, "is missing", stamps.keys() - tensors.keys())
    _report(path, "is not listed", tensors.keys() - stamps.keys())
    for name, value in tensors.items():
        found, wanted = stamp(value), stamps[name]
        if found["shape"] != wanted["shape"] or found["dtype"] != wanted["dtype"]:
            raise Rt3Error(
                f"'{path}': tensor '{name}' is {found['dtype']} {found['shape']}, expected {wanted['dtype']} {wanted['shape']}"
            )
        if found["sha256"] != wanted["sha256"]:
            raise Rt3Error(f"'{path}': tensor '{name}' was altered: its checksum differs")
    return tensors


def _report(path: Path, what: str, names: Iterable[str]) -> None:
    for name in sorted(names):
        raise Rt3Error(f"'{path}': tensor '{name}' {what}")


def check_matrix(name: str, matrix: SparseMatrix, weight: np.ndarray) -> None:
    """Check that a backbone, its patterns and their assignment belong to each other and to the weight.

    Raises
    ------
    ValueError
        One has another shape or kind than the others ask for, or points outside of them.
    """
    backbone, patterns, shape = matrix.backbone, matrix.patterns.columns, matrix.patterns.shape
    rows, cols = backbone.shape
    stored = as_matrix(weight, backbone.transposed) if weight.ndim else weight
    _expect(f"weight '{name}'", stored.shape == (rows, cols), stored.shape, (rows, cols))
    _expect(f"{name}: group {shape.group}", rows % shape.group == 0, rows, "a multiple of it")
    _expect(
        f"{name}: block rows", backbone.block_rows % shape.group == 0, backbone.block_rows, f"{shape.group} times n"
    )
    block_rows = -(-rows // backbone.block_rows)
    _columns(f"{name}: backbone", backbone.columns, (block_rows,), cols)
    _columns(f"{name}: patterns", patterns, (None, shape.rows // shape.group), shape.cols)
    if backbone.table is not None:
        _expect(f"{name}: table", backbone.table.shape == (cols,), backbone.table.shape, (cols,))
        _within(f"{name}: table", backbone.table, cols)
        _expect(f"{name}: table", len(np.unique(backbone.table)) == cols, "no order of its columns", "each once")
    _together(f"{name}: backbone", backbone.columns, shape.adjacent)
    _together(f"{name}: patterns", patterns, shape.adjacent)
    kept = backbone.columns.shape[1]
    _expect(f"{name}: backbone", kept > 0 and len(patterns) > 0, (kept, len(patterns)), "columns and patterns")
    blocks = (-(-rows // shape.rows), -(-kept // shape.cols))
    _expect(f"{name}: assignment", matrix.assignment.shape == blocks, matrix.assignment.shape, blocks)
    _within(f"{name}: assignment", matrix.assignment, len(patterns))


def _expect(what: str, holds: bool, found: Any, wanted: Any) -> None:
    if not holds:
        raise ValueError(f"{what} is {found}, expected {wanted}")


def _within(what: str, values: np.ndarray, limit: int) -> None:
    _expect(what, values.dtype == np.int32, values.dtype, "int32")
    if values.size and not (0 <= int(values.min()) and int(values.max()) < limit):
        raise ValueError(f"{what} points outside [0, {limit})")


def _columns(what: str, values: np.ndarray, leading: tuple[int | None, ...], limit: int) -> None:
    """Check columns along the last axis, ascending, of an array whose first axes have these sizes (None: any)."""
    _expect(what, values.ndim == len(leading) + 1, values.shape, f"{len(leading) + 1} axes")
    for size, wanted in zip(values.shape, leading, strict=False):
        _expect(what, wanted is None or size == wanted, values.shape, leading)
    _within(what, values, limit)
    if not (np.diff(values, axis=-1) > 0).all():
        raise ValueError(f"{what} does not ascend")


def _together(what: str, values: np.ndarray, adjacent: int) -> None:
    """Check that columns along the last axis come so many at a time, from a multiple of it on."""
    _expect(f"{what}: columns", values.shape[-1] % adjacent == 0, values.shape[-1], f"a multiple of {adjacent}")
    split = values.reshape(*values.shape[:-1], -1, adjacent)
    whole = (split[..., 0] % adjacent == 0).all() and (np.diff(split, axis=-1) == 1).all()
    _expect(f"{what}: columns", bool(whole), "apart", f"whole runs of {adjacent}")
