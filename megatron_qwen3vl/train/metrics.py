"""The files of a run, and wandb. Every file is a list of JSON lines whose length a checkpoint remembers, so that a
resumed run cuts off what it is about to write again and holds each step once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

FILES = ("metrics.jsonl", "samples.jsonl", "quarantine.jsonl", "skipped.jsonl", "validation.jsonl")


class RunFiles:
    """Append-only JSON lines under ``run.dir``; only the writing rank makes one."""

    def __init__(self, folder: Path, lengths: Mapping[str, int]) -> None:
        """Cut every file to its length in ``lengths`` (0 where it is not named) and open it for appending."""
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, IO[bytes]] = {}
        for name in FILES:
            handle = open(folder / name, "ab")  # noqa: SIM115 (closed in close)
            handle.truncate(min(lengths.get(name, 0), handle.tell()))
            handle.seek(0, os.SEEK_END)
            self._files[name] = handle

    def write(self, name: str, row: Mapping[str, Any]) -> None:
        text = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)
        # a file name inside a tar need not be UTF-8: its stray bytes become JSON escapes
        self._files[name].write(text.encode(errors="backslashreplace") + b"\n")
        self._files[name].flush()

    def lengths(self) -> dict[str, int]:
        """Bytes of each file so far."""
        return {name: handle.tell() for name, handle in self._files.items()}

    def sync(self) -> None:
        """Flush to the disk what has been written; another thread may write on meanwhile."""
        for handle in self._files.values():
            os.fsync(handle.fileno())

    def close(self) -> None:
        for handle in self._files.values():
            handle.close()


def _finite(value: Any) -> Any:
    """JSON has no infinity and no nan: they become null, however deep."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class WandbLog:
    """The same figures in wandb; a resumed run continues its wandb run (the id follows from the run's folder)."""

    def __init__(self, mode: str, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._run = None
        if mode == "disabled":
            return
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        self._run = wandb.init(
            mode="offline" if mode == "offline" else "online",
            project=project,
            dir=str(folder),
            id=identity,
            name=folder.name,
            resume="allow",
            config=dict(config),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, save_code=False),
        )

    def log(self, row: Mapping[str, Any], total_step: int) -> None:
        if self._run is not None:
            stage = row["stage"]
            flat = {f"{stage}/{key}": value for key, value in row.items() if isinstance(value, int | float)}
            for domain, values in row["domains"].items():
                flat.update({f"{stage}/domain/{domain}/{key}": value for key, value in values.items()})
            self._run.log(flat, step=total_step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
