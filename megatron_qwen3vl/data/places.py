"""Where bytes of shards lie: a ``Place`` is a file that can be read by offset. Nobody else handles paths of shards."""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from megatron_qwen3vl.errors import BadSample

CONTENT, TAG = "content", "tag"


@dataclass(frozen=True)
class Stamp:
    """Recognises a changed file. Equal size and time need no reading; a copied file has another time but the same
    digest. ``of``: what the sha256 ``digest`` is of, the file's CONTENT or the TAG that its server gives this state."""

    size: int
    mtime_ns: int
    digest: str
    of: str = CONTENT


class Place(Protocol):
    """Frozen, compared by value, and pickles in a few bytes: worker processes open it for themselves."""

    @property
    def name(self) -> str:
        """For messages: the path or the address, without credentials."""
        ...

    @property
    def identity(self) -> str:
        """What names this file and no other on this machine, to keep things about it under."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes.

        Raises:
            BadSample: the file ends before them.
            OSError: it cannot be read. That is the machine's or the network's trouble, not the sample's.
        """
        ...

    def size(self) -> int:
        """Bytes of the file. Raises OSError."""
        ...

    def open(self) -> BinaryIO:
        """To be read in order, with skips. Raises OSError."""
        ...

    def stamp(self, known: Stamp | None = None) -> Stamp:
        """What tells this state of the file from others; ``known`` saves reading it where that is still true.
        Raises OSError."""
        ...

    def version(self) -> str:
        """What changes whenever the file does, found without reading it: its size and time, or the server's tag.
        Raises OSError."""
        ...

    def pinned(self, stamp: Stamp) -> Place:
        """This file in this state: where it can be told, ``read`` never gives bytes of another one (OSError)."""
        ...

    def gathered(self) -> AbstractContextManager[Place]:
        """The same file for somebody who will read in many small pieces, some of them twice. Raises OSError."""
        ...

    def sibling(self, suffix: str) -> Place:
        """The file of this name with ``suffix`` behind it."""
        ...

    def inside(self, name: str) -> Place:
        """A file below this folder."""
        ...


@dataclass(frozen=True)
class LocalPlace:
    """A file, or a folder of loose files."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def identity(self) -> str:
        return str(self.path.resolve())

    def read(self, offset: int, size: int) -> bytes:
        with open(self.path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            raise BadSample(f"{self.path} ends before byte {offset + size}")
        return data

    def size(self) -> int:
        return self.path.stat().st_size

    def open(self) -> BinaryIO:
        return open(self.path, "rb")

    def stamp(self, known: Stamp | None = None) -> Stamp:
        status = self.path.stat()
        if known is not None and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return known
        with open(self.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        return Stamp(status.st_size, status.st_mtime_ns, digest.hexdigest())

    def version(self) -> str:
        status = self.path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    def pinned(self, stamp: Stamp) -> LocalPlace:
        return self

    def gathered(self) -> AbstractContextManager[Place]:
        return nullcontext(self)

    def sibling(self, suffix: str) -> LocalPlace:
        return LocalPlace(self.path.with_name(self.path.name + suffix))

    def inside(self, name: str) -> LocalPlace:
        return LocalPlace(self.path / name)
