"""Files behind addresses: ``http(s)://``, ``s3://`` and ``gs://``, read by ranges.

Every answer is checked against the state (ETag, else Last-Modified, and size) that the reader expects: bytes of another
state of the file are never returned.
"""

from __future__ import annotations

import errno
import io
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit, urlunsplit

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
from megatron_qwen3vl.errors import BadSample, UserError

SCHEMES = ("http", "https", *BUCKETS)
BESIDE = "beside"  # in place of a folder for indexes
_AT_ONCE = 64  # requests of one process while shards are looked up
_MANY = 10  # problems shown


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
        """One HEAD request; none where the state is known already."""
        return self.state or head(self.address, self.storage)

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
                errno.EIO,
                f"{self.name} changed while it was in use (from {self.state.size} bytes to {found.size}, with another "
                f"ETag or time); put the old file back, or index it again and restart",
            )


def list_tars(address: str, storage: StorageConfig) -> list[RemotePlace]:
    """All tars below a folder of a bucket in their present state, in order of their names, part by part.

    Raises:
        OSError: it cannot be listed.
    """
    parts = urlsplit(address)
    found = [(PurePosixPath(path), state) for path, state in list_files(address, storage)]
    tars = [(path, state) for path, state in found if path.suffix == ".tar" and not path.name.startswith(".")]
    tars.sort(key=lambda tar: tar[0].parts)
    return [RemotePlace(f"{parts.scheme}://{parts.netloc}/{path}", storage, state) for path, state in tars]


def find_tars(entries: Sequence[str], storage: StorageConfig) -> list[tuple[RemotePlace, str]]:
    """The tars behind addresses, in their present state, and the name of each inside the source, as find_shards has it.

    Args:
        entries: tars, and folders of buckets, which stand for the tars below them.

    Raises:
        UserError: no such tars, servers that cannot be reached.
    """
    problems: list[str] = []
    places: list[RemotePlace] = []
    roots: list[PurePosixPath] = []
    for entry in entries:
        name = without_credentials(entry)
        scheme = urlsplit(entry).scheme
        is_tar = urlsplit(entry).path.endswith(".tar") if scheme not in BUCKETS else entry.endswith(".tar")
        if scheme not in SCHEMES:
            problems.append(f"shards: {name}: {scheme}:// is not read; use {', '.join(SCHEMES)} or a folder")
        elif is_tar:
            places.append(RemotePlace(entry, storage))
            roots.append(_path_of(places[-1]).parent)
        elif scheme not in BUCKETS:
            problems.append(f"shards: {name} is not a .tar; a web server lists no folders: use a pattern {{0..9}}.tar")
        else:
            places += _listed(entry, storage, problems)
            roots.append(_path_of(RemotePlace(entry.rstrip("/"), storage)))
    doubled = [name for name, times in Counter(place.identity for place in places).items() if times > 1]
    problems += [f"shards: {name} is named twice; name it once" for name in doubled]
    if not problems:
        places = _reached(places, problems)
    if problems:
        more = [f"shards: {len(problems) - _MANY} more problems"] if len(problems) > _MANY else []
        raise UserError(problems[:_MANY] + more)
    root = os.path.commonpath(roots)
    return [(place, _path_of(place).relative_to(root).as_posix().removesuffix(".tar")) for place in places]


def check_index_target(spec: str, to: str | None) -> None:
    """Where ``data index`` writes: beside files of a disk unless it is told otherwise; elsewhere it has to be told.

    Raises:
        UserError: it cannot write there, or may not without being told.
    """
    scheme = urlsplit(spec).scheme
    if not is_address(spec) or to not in (None, BESIDE):
        return
    if scheme not in BUCKETS:
        raise UserError("data index: web servers are not written to; add --to FOLDER (later: storage.indexes=FOLDER)")
    if to is None:
        raise UserError("data index: add --to beside (into the bucket) or --to FOLDER (later: storage.indexes=FOLDER)")


def _path_of(place: RemotePlace) -> PurePosixPath:
    """Host or bucket, and path."""
    path = "/" + place.name.split("://", 1)[1]
    return PurePosixPath(path if place.scheme in BUCKETS else unquote(path))


def _listed(folder: str, storage: StorageConfig, problems: list[str]) -> list[RemotePlace]:
    try:
        found = list_tars(folder, storage)
    except OSError as error:
        problems.append(f"shards: {error.strerror}")
        return []
    if not found:
        problems.append(f"shards: {folder} holds no .tar; name the folder of the shards")
    return found


def _reached(places: Sequence[RemotePlace], problems: list[str]) -> list[RemotePlace]:
    def reach(place: RemotePlace) -> RemotePlace | OSError:
        try:
            return place.pinned(place.stamp())
        except OSError as error:
            return error

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(reach, places))
    problems += [f"shards: {error.strerror}" for error in found if isinstance(error, OSError)]
    return [place for place in found if isinstance(place, RemotePlace)]
