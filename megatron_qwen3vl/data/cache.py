"""Ranges of remote files kept in a local folder, bounded in bytes, shared by all processes of a machine.

An entry is a file, whole or absent: written under another name and renamed. The bound holds at any time, what is being
written included: its bytes are reserved in ``total`` (under a lock) before it is written. When they do not fit, the
entries used longest ago go until a tenth of the bound is free.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_qwen3vl.config.schema import StorageConfig

_PARTIAL = ".partial"
_ABANDONED_S = 3600.0  # a partial file this old was left by a process that died
_ROOM = 0.1  # share of the bound that is free after clearing


@dataclass(frozen=True)
class Cache:
    """``block_bytes``: a read fetches and keeps whole blocks of this size, so that its neighbours need no request of
    their own; 0: just what was asked for."""

    folder: Path
    max_bytes: int
    block_bytes: int

    @staticmethod
    def of(storage: StorageConfig) -> Cache | None:
        if storage.cache is None:
            return None
        return Cache(Path(storage.cache), storage.cache_bytes, storage.cache_block)

    def read(
        self, file: str, offset: int, size: int, file_size: int, fetch: Callable[[int, int], bytes]
    ) -> bytes:
        """``size`` bytes of a file from ``offset`` on.

        Args:
            file: names it and its state.
            fetch: (offset, size) -> bytes of it, for what is not here.

        Raises:
            OSError, BadSample: of ``fetch``. A cache that cannot be written (a full disk) is done without.
        """
        if not self.block_bytes:
            return self._range(file, offset, size, fetch)
        step = self.block_bytes
        first = offset // step * step
        starts = range(first, offset + size, step)
        blocks = {start: self._get(self._path(file, start, min(step, file_size - start))) for start in starts}
        for start, end in _gaps(blocks, step, file_size):
            data = fetch(start, end - start)
            for block in range(start, end, step):
                blocks[block] = data[block - start : block - start + step]
                self._put(self._path(file, block, len(blocks[block] or b"")), blocks[block] or b"")
        whole = b"".join(blocks[start] or b"" for start in starts)
        return whole[offset - first : offset - first + size]

    def _range(self, file: str, offset: int, size: int, fetch: Callable[[int, int], bytes]) -> bytes:
        path = self._path(file, offset, size)
        data = self._get(path)
        if data is None:
            data = fetch(offset, size)
            self._put(path, data)
        return data

    def _path(self, file: str, offset: int, size: int) -> Path:
        """Its size stands in the name: what a crash of the machine left too short is seen."""
        name = hashlib.sha256(f"{file}\n{offset}".encode("utf-8", "surrogateescape")).hexdigest()
        return self.folder / name[:2] / f"{name[2:40]}-{size}"

    def _get(self, path: Path) -> bytes | None:
        try:
            data = path.read_bytes()
            if len(data) == int(path.name.rpartition("-")[2]):
                os.utime(path)  # used now
                return data
            path.unlink()
        except OSError:
            pass  # not there, or cleared meanwhile
        return None

    def _put(self, path: Path, data: bytes) -> None:
        partial = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}{_PARTIAL}")
        try:
            if self._reserve(path, partial, len(data)):
                partial.write_bytes(data)
                os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink()

    def _reserve(self, path: Path, partial: Path, size: int) -> bool:
        """Count ``size`` bytes more and begin ``partial``; False for what does not fit or is here already."""
        if size > self.max_bytes:
            return False
        with self._ledger() as ledger:
            if path.exists():
                return False
            text = os.pread(ledger, 32, 0).strip()
            total = int(text) if text.isdigit() else self._clear(self.max_bytes)
            if total + size > self.max_bytes:
                total = self._clear(max(0, int(self.max_bytes * (1 - _ROOM)) - size))
            fits = total + size <= self.max_bytes  # else all of it is being written just now
            os.pwrite(ledger, f"{total + size * fits:<32}".encode(), 0)
            if fits:
                partial.parent.mkdir(exist_ok=True)
                partial.touch()
            return fits

    @contextmanager
    def _ledger(self) -> Iterator[int]:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.folder / "total", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _clear(self, bound: int) -> int:
        """Remove what was used longest ago until at most ``bound`` bytes are left; returns how many are."""
        entries = []
        for path in self.folder.glob("*/*"):
            try:
                status = path.stat()
                if path.name.endswith(_PARTIAL) and time.time() - status.st_mtime > _ABANDONED_S:
                    path.unlink()
                    continue
                # what is being written counts as the size it will have
                size = int(path.name.split(".")[0].rpartition("-")[2])
            except (OSError, ValueError):
                continue
            entries.append((status.st_mtime_ns, size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= bound:
                break
            if not path.name.endswith(_PARTIAL):
                with suppress(OSError):
                    path.unlink()
                total -= size
        return total


def _gaps(blocks: dict[int, bytes | None], step: int, file_size: int) -> Iterator[tuple[int, int]]:
    """(first byte, the one behind the last) of each run of blocks that are not here."""
    begin = None
    for start, data in blocks.items():
        if data is None and begin is None:
            begin = start
        elif data is not None and begin is not None:
            yield begin, start
            begin = None
    if begin is not None:
        yield begin, min(max(blocks) + step, file_size)
