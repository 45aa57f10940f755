"""Rows with a text, or with a conversation in chat form: lines of JSON, and Parquet.

A document is ``{"text": "..."}``, a conversation ``{"messages": [{"role": "user", "content": "..."}, ...]}``; the
fields' names can be set. ShareGPT's ``{"from": "human", "value": "..."}`` is a message too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_qwen3vl.data.compose import ROLES
from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.files import Line, find_files, lines_of, sample, stem_of
from megatron_qwen3vl.importers.frame import Entry, Format, Made, Unwanted, clean_key, needs, option
from megatron_qwen3vl.recipes.record import document, text

_ROLES = {**{role: role for role in ROLES}, "human": "user", "gpt": "assistant"}
_BATCH = 256  # rows of Parquet in memory
_BUFFER = 2**20  # bytes of a column read at once


@dataclass(frozen=True)
class TextSettings:
    field: str = option("text", "field of a row that holds a document's text")
    messages: str = option("messages", "field that holds a conversation, where a row has one")
    key: str | None = option(None, "field that holds the sample's key; null makes it of the file's name and the row")
    min_chars: int = option(1, "leave out shorter texts")
    max_chars: int | None = option(None, "leave out longer texts")
    domain: str = option("text", "the samples' domain")

    def __post_init__(self) -> None:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise UserError(f"max_chars: {self.max_chars} is less than min_chars={self.min_chars}")


def make_sample(row: Mapping[str, Any], settings: TextSettings) -> Made:
    """Raises:
    BadSample: the row has neither field, or what it holds is no text and no conversation.
    Unwanted: too short or too long.
    """
    if row.get(settings.messages) is not None:
        messages = _messages(row[settings.messages], settings.messages)
        count = sum(len(message["content"]) for message in messages)
        body: dict[str, Any] = {"messages": messages, "domain": settings.domain}
    else:
        words = row.get(settings.field)
        if not isinstance(words, str):
            raise BadSample(f"field '{settings.field}' {'holds no text' if settings.field in row else 'is missing'}")
        count, body = len(words), document([text(words)], settings.domain)
    if count < settings.min_chars:
        raise Unwanted("min_chars")
    if settings.max_chars is not None and count > settings.max_chars:
        raise Unwanted("max_chars")
    return sample(body, {})


def _messages(value: Any, field: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise BadSample(f"field '{field}' is not a list of messages")
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise BadSample(f"{field}[{number}] is not an object")
        role = message.get("role") or message.get("from")
        content = message["value"] if message.get("content") is None and "value" in message else message.get("content")
        if role not in _ROLES:
            raise BadSample(f"{field}[{number}]: unknown role {role!r:.40} (known: {', '.join(_ROLES)})")
        if not isinstance(content, str):
            raise BadSample(f"{field}[{number}]: 'content' is not a text")
        messages.append({"role": _ROLES[role], "content": content})
    if all(message["role"] != "assistant" for message in messages):
        raise BadSample(f"field '{field}' has no turn of the assistant to learn from")
    return messages


def _check_fields(where: str, fields: Sequence[str], settings: TextSettings) -> None:
    problems = []
    if settings.field not in fields and settings.messages not in fields:
        there = ", ".join(map(str, fields)) or "none"
        problems.append(
            f"data import: {where} has neither field '{settings.field}' (give field=NAME) nor '{settings.messages}' "
            f"(give messages=NAME); its fields are {there:.300}"
        )
    if settings.key is not None and settings.key not in fields:
        problems.append(f"data import: {where} has no field '{settings.key}'; change key={settings.key}")
    if problems:
        raise UserError(problems)


def _own_key(row: Mapping[str, Any], field: str) -> str | None:
    value = row.get(field)
    return clean_key(str(value)) if isinstance(value, str | int) else None


def read_jsonl(source: Path, settings: TextSettings) -> Iterator[Entry]:
    files = find_files(source, (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zip"), "files of JSON lines")
    first = True
    for number, path in enumerate(files):
        stem = clean_key(stem_of(path, source))
        for line in lines_of(path):
            if first:
                _check_first(line, settings)
            first = False
            key = f"{stem}_{line.number:07d}"
            if settings.key is not None:
                key = _key_of_line(line, settings.key) or key
            yield Entry(key, partial(_from_line, line, settings), part=(number + line.part) / len(files))


def _check_first(line: Line, settings: TextSettings) -> None:
    """A source whose first line is no row of this form is another source."""
    try:
        row = line.object()
    except BadSample as bad:
        raise UserError(f"data import: {line.path}: {bad}; SOURCE should have one JSON object in a line") from None
    _check_fields(f"{line.path}, line {line.number},", list(row), settings)


def _key_of_line(line: Line, field: str) -> str | None:
    try:
        return _own_key(line.object(), field)
    except BadSample:
        return None  # is said when the sample is made


def _from_line(line: Line, settings: TextSettings) -> Made:
    row = line.object()
    try:
        return make_sample(row, settings)
    except BadSample as bad:
        raise BadSample(f"line {line.number} of {line.path.name}: {bad}") from None


def read_parquet(source: Path, settings: TextSettings) -> Iterator[Entry]:
    needs("pyarrow", "Parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = find_files(source, (".parquet",), "Parquet files")
    for number, path in enumerate(files):
        stem, row = clean_key(stem_of(path, source)), 0
        try:
            # Without these, whole columns of a row group are in memory.
            with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as table:
                names = table.schema_arrow.names
                _check_fields(str(path), names, settings)
                columns = [c for c in (settings.field, settings.messages, settings.key) if c in names]
                for batch in table.iter_batches(_BATCH, columns=columns):
                    for place in range(batch.num_rows):
                        row += 1
                        key = f"{stem}_{row:07d}"
                        if settings.key is not None:
                            key = _own_key({settings.key: batch[settings.key][place].as_py()}, settings.key) or key
                        part = (number + row / max(table.metadata.num_rows, 1)) / len(files)
                        yield Entry(key, partial(_from_batch, batch, place, f"row {row} of {path.name}", settings),
                                    part=part)  # fmt: skip
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(f"data import: {path} is not readable Parquet: {' '.join(str(error).split())}") from None


def _from_batch(batch: Any, place: int, where: str, settings: TextSettings) -> Made:
    """``batch``: a pyarrow.RecordBatch."""
    try:
        return make_sample({name: batch[name][place].as_py() for name in batch.schema.names}, settings)
    except UnicodeDecodeError as error:
        raise BadSample(f"{where} is not UTF-8 (byte {error.start})") from None
    except BadSample as bad:
        raise BadSample(f"{where}: {bad}") from None


JSONL = Format("jsonl", "text or conversations, a JSON object a line",
               "a .jsonl or .json file (.gz and .zip too), or a folder of them", TextSettings, read_jsonl)  # fmt: skip
PARQUET = Format("parquet", "text or conversations, a row each", "a .parquet file, or a folder of them",
                 TextSettings, read_parquet)  # fmt: skip
