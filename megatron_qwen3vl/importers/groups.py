"""Rows of a source put together by what they belong to, on disk: they come in any order, and in any number."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from megatron_qwen3vl.errors import UserError

CACHE_KIB = 16_384


class Groups:
    """``of(name)``: the rows of one name, in the source's order. ``names()``: in the order of their first rows."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def of(self, name: str | int) -> list[Any]:
        rows = self._connection.execute("SELECT row FROM rows WHERE name = ? ORDER BY place", (json.dumps(name),))
        return [json.loads(row) for (row,) in rows]

    def names(self) -> Iterator[Any]:
        # An explicit sort: sqlite keeps what it sorts on disk, within the cache's size in memory.
        found = self._connection.execute("SELECT name FROM rows GROUP BY name ORDER BY min(place)")
        for (name,) in found:
            yield json.loads(name)

    def rows(self) -> Iterator[Any]:
        """All, in the source's order."""
        for (row,) in self._connection.execute("SELECT row FROM rows ORDER BY place"):
            yield json.loads(row)

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM rows").fetchone()[0])


@contextmanager
def group(rows: Iterable[tuple[str | int, Any]]) -> Iterator[Groups]:
    """``rows``: a name and what JSON can hold. The file, in SQLITE_TMPDIR or TMPDIR, goes when the context ends, also
    after kill -9; its size is about that of the rows written as JSON, and an index.

    Names are kept as JSON: sqlite takes no halves of surrogate pairs and no integers beyond 64 bits.

    Raises:
        UserError: the file cannot be written.
    """
    with closing(sqlite3.connect("")) as connection:  # an empty name: a file that sqlite itself opens and unlinks
        written = ((json.dumps(name), json.dumps(row, separators=(",", ":"))) for name, row in rows)
        try:
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("CREATE TABLE rows (place INTEGER PRIMARY KEY, name TEXT, row TEXT)")
            connection.executemany("INSERT INTO rows (name, row) VALUES (?, ?)", written)
            connection.execute("CREATE INDEX by_name ON rows (name, place)")
        except sqlite3.OperationalError as error:
            folder = os.environ.get("SQLITE_TMPDIR") or tempfile.gettempdir()
            raise UserError(
                f"data import: a temporary file in {folder}: {error}; name a folder with room for one by SQLITE_TMPDIR"
            ) from error
        yield Groups(connection)
