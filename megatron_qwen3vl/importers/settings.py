"""``key=value`` words of the command line -> the frozen dataclasses of a format, every problem together."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.frame import option

T = TypeVar("T")
NULL = ("null", "none", "")
_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class CommonSettings:
    """Keys that every format has."""

    held_out: float = option(0.01, "share of the keys that goes to OUT/held_out, by their hash; the rest to OUT/train")
    shard_samples: int = option(5_000, "most samples of a shard")
    shard_bytes: int = option(500_000_000, "a shard ends with the sample that reaches this size")
    limit: int | None = option(None, "stop after so many entries of the source; null reads all")
    index: bool = option(True, "index the shards, as `data index` does")
    tokenizer: str | None = option(None, "tokenizer folder that the index counts with; null is the built-in one")

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.held_out < 1:
            problems.append(f"held_out: {self.held_out} must be at least 0 and less than 1")
        for name, value in (("shard_samples", self.shard_samples), ("shard_bytes", self.shard_bytes)):
            if value < 1:
                problems.append(f"{name}: {value} must be at least 1")
        if self.limit is not None and self.limit < 1:
            problems.append(f"limit: {self.limit} must be at least 1, or null")
        if problems:
            raise UserError(problems)


def read_settings(kinds: Sequence[type[Any]], words: Sequence[str]) -> list[Any]:
    """One object of each of ``kinds``, whose fields' names do not overlap.

    Raises:
        UserError: a line for each word that is no known key or has no value of its type, for each required key that is
            missing, and for each problem that the settings find with themselves.
    """
    fields = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    given: dict[str, str] = {}
    problems = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in fields:
            problems.append(f"{word}: no such key; there are {', '.join(fields)}")
        elif name in given:
            problems.append(f"{name}: given twice")
        else:
            given[name] = value
    made = [_make(kind, given, problems) for kind in kinds]
    if problems:
        raise UserError(problems)
    return made


def _make(kind: type[T], given: Mapping[str, str], problems: list[str]) -> T | None:
    """The settings, checked as far as its values can be read; problems are added to the list."""
    types_of = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    whole = True
    for field in dataclasses.fields(typing.cast(Any, kind)):
        if field.name in given:
            try:
                values[field.name] = _value(given[field.name], types_of[field.name])
            except ValueError as error:
                problems.append(f"{field.name}: {given[field.name]!r} is not {error}")
                whole = whole and field.default is not dataclasses.MISSING
        elif field.default is dataclasses.MISSING:
            problems.append(f"{field.name}: missing; {field.metadata['says']}")
            whole = False
    if not whole:
        return None
    try:
        return kind(**values)
    except UserError as error:
        problems += error.problems
        return None


def _value(word: str, kind: Any) -> Any:
    """``word`` as a value of ``kind``; ValueError says what it should be."""
    if isinstance(kind, types.UnionType):
        (kind,) = (each for each in typing.get_args(kind) if each is not type(None))
        if word.lower() in NULL:
            return None
    if kind is str:
        return word
    if typing.get_origin(kind) is tuple:
        return tuple(part for part in word.split(",") if part)
    try:
        return _TRUTH[word.lower()] if kind is bool else kind(word.replace("_", "") if kind is int else word)
    except (ValueError, KeyError):
        raise ValueError(_NAMES[kind]) from None


def describe(kind: type[Any]) -> list[str]:
    """A line for each key: its name, its default, and what it says."""
    rows = []
    for field in dataclasses.fields(kind):
        shown = "(needed)" if field.default is dataclasses.MISSING else _shown(field.default)
        rows.append((f"{field.name}={shown}", field.metadata["says"]))
    width = max((len(left) for left, _ in rows), default=0)
    return [f"  {left:<{width}}  {says}" for left, says in rows]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
