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
from megatron_qwen3vl.importers.files import sample
from megatron_qwen3vl.importers.frame import Entry, Format, Made, Unwanted, clean_key, option
from megatron_qwen3vl.importers.rows import JSON, PARQUET, Row, rows_of
from megatron_qwen3vl.recipes.record import document, text

_ROLES = {**{role: role for role in ROLES}, "human": "user", "gpt": "assistant"}


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

    def check(self, where: str, fields: Sequence[str]) -> None:
        problems = []
        if self.field not in fields and self.messages not in fields:
            there = ", ".join(map(str, fields)) or "none"
            problems.append(
                f"data import: {where} has neither field '{self.field}' (give field=NAME) nor '{self.messages}' "
                f"(give messages=NAME); its fields are {there:.300}"
            )
        if self.key is not None and self.key not in fields:
            problems.append(f"data import: {where} has no field '{self.key}'; change key={self.key}")
        if problems:
            raise UserError(problems)


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
        content = message.get("value") if message.get("content") is None else message["content"]
        if not isinstance(role, str) or role not in _ROLES:
            raise BadSample(f"{field}[{number}]: unknown role {role!r:.40} (known: {', '.join(_ROLES)})")
        if not isinstance(content, str):
            raise BadSample(f"{field}[{number}]: 'content' is not a text")
        messages.append({"role": _ROLES[role], "content": content})
    if all(message["role"] != "assistant" for message in messages):
        raise BadSample(f"field '{field}' has no turn of the assistant to learn from")
    return messages


def _read(endings: Sequence[str], source: Path, settings: TextSettings) -> Iterator[Entry]:
    columns = [name for name in (settings.field, settings.messages, settings.key) if name is not None]
    for row in rows_of(source, endings, columns, settings.check):
        yield Entry(_key(row, settings.key), partial(_make, row, settings), part=row.part)


def _key(row: Row, field: str | None) -> str:
    if field is None:
        return row.key
    try:
        value = row.read().get(field)
    except BadSample:
        return row.key  # is said when the sample is made
    return clean_key(str(value)) if isinstance(value, str | int) else row.key


def _make(row: Row, settings: TextSettings) -> Made:
    fields = row.read()
    try:
        return make_sample(fields, settings)
    except BadSample as bad:
        raise BadSample(f"{row.where}: {bad}") from None


JSONL = Format("jsonl", "text or conversations, a JSON object a line",
               "a .jsonl or .json file (.gz and .zip too), or a folder of them",
               TextSettings, partial(_read, JSON))  # fmt: skip
PARQUET_TEXT = Format("parquet", "text or conversations, a row each", "a .parquet file, or a folder of them",
                      TextSettings, partial(_read, PARQUET))  # fmt: skip
