"""What an importer of one format is: its settings, and a reader that names each entry of the source and can make it.

A reader walks the source in the source's own order, the same in every run, and yields an ``Entry`` for everything that
may become a sample, usable or not. The frame (``run``) decides which split an entry belongs to by a hash of its key,
and asks it for its files only where they are needed: entries before the point where an interrupted import goes on are
walked over but not made.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from megatron_qwen3vl.errors import UserError

EXTRA = "pip install 'megatron_qwen3vl[import]'"
_NOT_IN_A_KEY = re.compile(r"[^\w/-]+")
T = TypeVar("T")


class Unwanted(Exception):
    """A filter of the settings leaves this entry out. The message is the filter's key: entries are counted by it."""


@dataclass(frozen=True)
class Made:
    """A sample's files, as they stand in a shard behind ``KEY.``. ``notes``: what was left out of it, and why."""

    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """Something of the source that may become a sample.

    ``key``: its own, see ``clean_key``. ``make`` is called at most once, before the next entry is asked for, and raises
    BadSample (it cannot be used) or Unwanted (the settings do not want it). ``group``: entries with one group go to the
    same split; None is the key itself. ``part``: which part of the source lies behind this entry, 0 to 1; None is not
    known.
    """

    key: str
    make: Callable[[], Made]
    group: str | None = None
    part: float | None = None


@dataclass(frozen=True)
class Format:
    """``source``: what SOURCE names, for the help. ``settings``: a frozen dataclass of fields made by ``option``; its
    ``__post_init__`` raises UserError with every problem. ``read`` (source, settings) raises UserError where SOURCE
    is not of this format: one line that names the file and the field."""

    name: str
    summary: str
    source: str
    settings: type[Any]
    read: Callable[[Path, Any], Iterator[Entry]]


def option(default: T, says: str) -> T:
    """A field of a settings class: its default and its line of the help. Types: str, int, float, bool, these or None,
    and ``tuple[str, ...]``, written with commas."""
    value: T = field(default=default, metadata={"says": says})
    return value


def required(says: str) -> Any:
    """A field that has no default. Goes before all others."""
    return field(metadata={"says": says})


def clean_key(name: str) -> str:
    """``name`` where it can be a key as it is, else one without dots and spaces that no other name gets."""
    if name and not _NOT_IN_A_KEY.search(name) and all(name.split("/")):
        return name
    mark = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    parts = [part for part in _NOT_IN_A_KEY.sub("_", name).split("/") if part]
    return "_".join(["/".join(parts), mark])


def needs(library: str, why: str) -> None:
    """Call before importing an optional library.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec(library) is None:
        raise UserError(f"data import: {why} needs {library}: {EXTRA}")
