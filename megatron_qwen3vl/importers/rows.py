"""Rows of lines of JSON and of Parquet, one at a time: what several formats are stored in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.files import Line, find_files, lines_of, stem_of
from megatron_qwen3vl.importers.frame import clean_key, needs

JSON = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zip")
PARQUET = (".parquet",)
_BATCH = 256  # rows of Parquet in memory
_BUFFER = 2**20  # bytes of a column read at once

Check = Callable[[str, Sequence[str]], None]  # where, its fields; raises UserError where they are another format's


@dataclass(frozen=True)
class Row:
    """``key``: of the file's name and the row's number, from 1. ``where``: the same in words. ``part``: which part of
    the source lies behind it. ``read`` gives its fields, or raises BadSample."""

    key: str
    where: str
    part: float
    read: Callable[[], dict[str, Any]]


def rows_of(source: Path, endings: Sequence[str], columns: Sequence[str], check: Check) -> Iterator[Row]:
    """Of a file, or of all files below a folder with one of the ``endings``.

    Args:
        columns: those of Parquet that are read, where they are there.
        check: is given the fields of the first line of JSON, and those of each Parquet file.

    Raises:
        UserError: no such file, or one that is not what its ending says.
    """
    files = find_files(source, endings, " or ".join(name for name in ("JSON lines", "Parquet") if _has(endings, name)))
    first = True
    for number, path in enumerate(files):
        stem = clean_key(stem_of(path, source))
        if path.suffix in PARQUET:
            for row in _parquet(path, stem, columns, check):
                yield _shared_out(row, number, len(files))
            continue
        for line in lines_of(path):
            if first:
                _check_first(line, check)
            first = False
            where = f"line {line.number} of {path.name}"
            yield _shared_out(Row(f"{stem}_{line.number:07d}", where, line.part, line.object), number, len(files))


def has_fields(fields: Sequence[str], where: str, found: Sequence[str]) -> None:
    """Raises UserError, which names the first of ``fields`` that is not among those ``found``."""
    missing = [name for name in fields if name not in found]
    if missing:
        there = ", ".join(map(str, found)) or "none"
        raise UserError(f"data import: {where} has no field '{missing[0]}'; its fields are {there:.300}")


def _has(endings: Sequence[str], name: str) -> bool:
    return bool(set(PARQUET if name == "Parquet" else JSON) & set(endings))


def _shared_out(row: Row, number: int, count: int) -> Row:
    return Row(row.key, row.where, (number + row.part) / count, row.read)


def _check_first(line: Line, check: Check) -> None:
    """A source whose first line is no row of this form is another source."""
    try:
        row = line.object()
    except BadSample as bad:
        raise UserError(f"data import: {line.path}: {bad}; SOURCE should have one JSON object in a line") from None
    check(f"{line.path}, line {line.number},", list(row))


def _parquet(path: Path, stem: str, columns: Sequence[str], check: Check) -> Iterator[Row]:
    needs("pyarrow", "Parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without these two, whole columns of a row group are in memory; with them, a page and a batch.
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as table:
            names = table.schema_arrow.names
            check(str(path), names)
            number, count = 0, max(table.metadata.num_rows, 1)
            for batch in table.iter_batches(_BATCH, columns=[name for name in columns if name in names]):
                for place in range(batch.num_rows):
                    number += 1
                    where = f"row {number} of {path.name}"
                    read = partial(_from_batch, batch, place, where)
                    yield Row(f"{stem}_{number:07d}", where, number / count, read)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"data import: {path} is not readable Parquet: {' '.join(str(error).split())}") from None


def _from_batch(batch: Any, place: int, where: str) -> dict[str, Any]:
    """``batch``: a pyarrow.RecordBatch."""
    try:
        return {name: batch[name][place].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        raise BadSample(f"{where} is not UTF-8 (byte {error.start})") from None
