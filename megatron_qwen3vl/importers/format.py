"""What an importer is: settings, and a generator from a public data set's own files to samples of our shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Sample = tuple[str, dict[str, bytes]]  # key, {what stands behind ``KEY.``: the file}
Report = Callable[[str], None]  # takes the name of one item and why it is left out, in one line; the import goes on


@dataclass(frozen=True)
class Format:
    """``read(SOURCE, settings, report)`` yields samples in the source's order, with bounded memory, and the same ones at
    every call. A source of another format is a UserError that names the file and the field.

    ``settings`` is a frozen dataclass whose fields are made by ``key``; its ``__post_init__`` raises UserError.
    """

    makes: str  # a few words for the list of formats
    source: str  # what SOURCE is
    settings: type[Any]
    read: Callable[[Path, Any, Report], Iterator[Sample]]


def key(default: str | int | float | bool, about: str) -> Any:
    """A field of a settings dataclass: a ``key=value`` of the command, with the words its help shows."""
    return field(default=default, metadata={"about": about})
