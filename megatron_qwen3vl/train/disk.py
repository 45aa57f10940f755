"""What a save does to the disk, one operation at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_BUFFER = 1 << 20  # bytes: a tensor is many small records, and a write to a network file system is dear


class Disk:
    """Every change that saving and pruning make goes through these, so that a test can record and replay it."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def create(self, path: Path) -> Iterator[IO[bytes]]:
        """A new file; when the block ends, its contents have been flushed to the disk."""
        with self.open(path) as stream:
            yield stream
            stream.flush()
            self.sync(stream)

    def open(self, path: Path) -> IO[bytes]:
        return open(path, "wb", buffering=_BUFFER)

    def sync(self, stream: IO[bytes]) -> None:
        os.fsync(stream.fileno())

    def sync_folder(self, path: Path) -> None:
        """Flush the names in a folder."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder)
