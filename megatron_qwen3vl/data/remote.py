"""Files behind addresses: ``http(s)://``, ``s3://`` and ``gs://``, read by ranges.

Every answer is checked against the state (ETag, else Last-Modified, and size) that the reader expects: bytes of another
state of the file are never returned.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit, urlunsplit

from megatron_qwen3vl.config.schema import StorageConfig
from megatron_qwen3vl.data.cache import Cache
from megatron_qwen3vl.data.places import Place, Stamp
from megatron_qwen3vl.data.storage import (
    BUCKETS,
    EndsBefore,
    StorageError,
    get,
    get_range,
    head,
    list_files,
    put,
    without_credentials,
)
from megatron_qwen3vl.data.window import BLOCK, RangeReader, Window
from megatron_qwen3vl.errors import BadSample

SCHEMES = ("http", "https", *BUCKETS)


def is_address(text: str) -> bool:
    return "://" in text


@dataclass(frozen=True, repr=False)
class RemotePlace:
    """``address`` may hold credentials and never shows in messages. ``state``: what the file has to be; None: anything,
    nothing is cached then."""

    address: str
    storage: StorageConfig
    state: Stamp | None = None

    def __repr__(self) -> str:
        return f"RemotePlace({self.name})"

    @property
    def name(self) -> str:
        return without_credentials(self.address)

    @property
    def identity(self) -> str:
        return self.name

    @property
    def scheme(self) -> str:
        return urlsplit(self.address).scheme

    def read(self, offset: int, size: int) -> bytes:
        if self.state is not None and offset + size > self.state.size:
            raise BadSample(f"{self.name} ends before byte {offset + size}")
        if not size:
            return b""
        cache = Cache.of(self.storage)
        if cache is None or self.state is None:
            return self._fetch(offset, size)
        return cache.read(f"{self.identity}\n{self.state.digest}", offset, size, self.state.size, self._fetch)

    def size(self) -> int:
        return self.stamp().size

    def open(self) -> BinaryIO:
        return io.BufferedReader(RangeReader(self, self.size()), BLOCK)

    def stamp(self, known: Stamp | None = None) -> Stamp:
        """One HEAD request."""
        return head(self.address, self.storage)

    def version(self) -> str:
        stamp = self.stamp()
        return f"{stamp.size} {stamp.digest}"

    def pinned(self, stamp: Stamp) -> RemotePlace:
        return replace(self, state=stamp)

    def gathered(self) -> AbstractContextManager[Place]:
        state = self.stamp()
        return Window(self.pinned(state), state)

    def sibling(self, suffix: str) -> RemotePlace:
        if self.scheme in BUCKETS:
            return RemotePlace(self.address + suffix, self.storage)
        parts = urlsplit(self.address)
        return RemotePlace(urlunsplit(parts._replace(path=parts.path + suffix)), self.storage)

    def inside(self, name: str) -> RemotePlace:
        return self.sibling(f"/{name}")

    def content(self) -> bytes:
        """The whole file. Raises FileNotFoundError where there is none, OSError."""
        return get(self.address, self.storage)

    def write(self, data: bytes) -> None:
        """Whole or not at all. Raises OSError."""
        put(self.address, self.storage, data)

    def _fetch(self, offset: int, size: int) -> bytes:
        try:
            return get_range(self.address, self.storage, offset, size, self._check_state)
        except EndsBefore:
            raise BadSample(f"{self.name} ends before byte {offset + size}") from None

    def _check_state(self, found: Stamp) -> None:
        if self.state is not None and (found.size, found.digest) != (self.state.size, self.state.digest):
            raise StorageError(
                f"{self.name} changed while it was in use ({found.size} bytes, {found.digest}; before: "
                f"{self.state.size} bytes, {self.state.digest}); put the old file back, or index it again and restart"
            )


def list_tars(address: str, storage: StorageConfig) -> list[str]:
    """The addresses of all tars below a folder of a bucket, in order of their names, part by part.

    Raises:
        OSError: it cannot be listed.
    """
    parts = urlsplit(address)
    found = [PurePosixPath(path) for path in list_files(address, storage)]
    tars = [path for path in found if path.suffix == ".tar" and not path.name.startswith(".")]
    return [f"{parts.scheme}://{parts.netloc}/{path}" for path in sorted(tars, key=lambda path: path.parts)]
