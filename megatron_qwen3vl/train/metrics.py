"""The files of a run, and wandb. Every file is a list of JSON lines whose length a checkpoint remembers, so that a
resumed run cuts off what it is about to write again and holds each step once.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

FILES = ("metrics.jsonl", "samples.jsonl", "quarantine.jsonl", "skipped.jsonl", "validation.jsonl")
STARTS = "starts.jsonl"  # never cut: it says how often the run began again
WANDB_ID = "wandb.id"


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
        self._files[STARTS] = open(folder / STARTS, "ab")  # noqa: SIM115

    def write(self, name: str, row: Mapping[str, Any]) -> None:
        text = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)
        # a file name inside a tar need not be UTF-8: its stray bytes become JSON escapes
        self._files[name].write(text.encode(errors="backslashreplace") + b"\n")
        self._files[name].flush()

    def lengths(self) -> dict[str, int]:
        """Bytes so far of each file that a resumed run cuts."""
        return {name: self._files[name].tell() for name in FILES}

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
    """The same figures in wandb by update of the whole run: ``<stage>/<figure>``, ``<stage>/domain/<domain>/<figure>``.

    A resumed run continues its wandb run: the id is kept in the run's folder, so it moves with it.
    """

    def __init__(self, mode: str, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._run = None
        if mode == "disabled":
            return
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode="offline" if mode == "offline" else "online",
            project=project,
            dir=str(folder),
            id=_identity(folder / WANDB_ID),
            name=folder.name,
            resume="allow",
            config=dict(config),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, save_code=False),
        )

    def log(self, row: Mapping[str, Any], total_step: int) -> None:
        if self._run is not None:
            self._run.log(dict(_flat(row["stage"], row)), step=total_step)

    def log_held_out(self, row: Mapping[str, Any], total_step: int) -> None:
        """A row of validation.jsonl, as ``<stage>/held_out/...``."""
        if self._run is not None:
            self._run.log(dict(_flat(f"{row['stage']}/held_out", row)), step=total_step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _identity(path: Path) -> str:
    """The id in the file, written there when the run first asks for one."""
    try:
        known = path.read_text().strip()
    except FileNotFoundError:
        known = ""
    if not known:
        known = secrets.token_hex(6)
        path.write_text(known + "\n")
    return known


def _flat(prefix: str, row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Figures by name; a step's place in its stage and whether it was skipped are figures, too."""
    for key, value in row.items():
        if isinstance(value, int | float):
            yield f"{prefix}/{key}", value
    for domain, values in row["domains"].items():
        for key, value in values.items():
            if value is not None:
                yield f"{prefix}/domain/{domain}/{key}", value
    for source, tokens in row.get("sources", {}).items():
        yield f"{prefix}/source/{source}/tokens", tokens
    for source, epochs in row.get("epochs", {}).items():
        yield f"{prefix}/source/{source}/epochs", epochs
