"""A remote file while it is indexed: read in order with skips, no byte fetched twice.

What was fetched lies in a sparse temporary file, so that the walk over the headers and the look at the samples behind
it share it, and what nobody looks into costs neither bytes nor space.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

from megatron_qwen3vl.data.places import Place, Stamp
from megatron_qwen3vl.errors import BadSample

BLOCK = 16 * 1024
# in blocks
_FIRST = 4  # of a request behind a skip: a tar's header with the JSON or the picture's head behind it
_SKIP = 4  # a gap up to this is read through: a request costs more
_LONGEST = 256


class RangeReader(io.RawIOBase):
    """A place as a file. Gives at most one block at once, so that a reader who skips takes little."""

    def __init__(self, place: Place, size: int) -> None:
        self._place, self._size, self._position = place, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._size, (self._position // BLOCK + 1) * BLOCK)
        data = self._place.read(self._position, max(0, end - self._position))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


class Window:
    """A ``Place`` over another one, between ``with`` and its end.

    Args:
        place: pinned to ``state``.
    """

    def __init__(self, place: Place, state: Stamp) -> None:
        self._place, self._state = place, state
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._has = bytearray(-(-state.size // BLOCK))
        self._behind = 0  # where the last request ended
        self._request = _FIRST

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *trouble: object) -> None:
        self._file.close()

    @property
    def name(self) -> str:
        return self._place.name

    @property
    def identity(self) -> str:
        return self._place.identity

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > self._state.size:
            raise BadSample(f"{self.name} ends before byte {offset + size}")
        if not size:
            return b""
        for first, end in self._lacking(offset // BLOCK, -(-(offset + size) // BLOCK)):
            self._fetch(first, end)
        return os.pread(self._file.fileno(), size, offset)

    def size(self) -> int:
        return self._state.size

    def open(self) -> BinaryIO:
        return io.BufferedReader(RangeReader(self, self._state.size), BLOCK)

    def stamp(self, known: Stamp | None = None) -> Stamp:
        return self._state

    def version(self) -> str:
        return self._place.version()

    def pinned(self, state: Stamp) -> Place:
        return self._place.pinned(state)

    def gathered(self) -> AbstractContextManager[Place]:
        return nullcontext(self)

    def sibling(self, suffix: str) -> Place:
        return self._place.sibling(suffix)

    def inside(self, name: str) -> Place:
        return self._place.inside(name)

    def _lacking(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of blocks that are not here. What is fetched meanwhile may reach beyond them."""
        while (first := self._has.find(0, first, end)) >= 0:
            behind = self._has.find(1, first, end)
            yield first, behind if behind >= 0 else end

    def _fetch(self, first: int, end: int) -> None:
        """At least these blocks; more and more at once for a reader who goes on without skips."""
        if self._behind <= first <= self._behind + _SKIP and not any(self._has[self._behind : first]):
            first, self._request = self._behind, min(2 * self._request, _LONGEST)
        else:
            self._request = _FIRST
        last = min(max(end, first + self._request), len(self._has))
        known = self._has.find(1, end, last)
        last = known if known >= 0 else last
        data = self._place.read(first * BLOCK, min(last * BLOCK, self._state.size) - first * BLOCK)
        os.pwrite(self._file.fileno(), data, first * BLOCK)
        self._has[first:last] = b"\1" * (last - first)
        self._behind = last
