"""``data import``: the entries of a format's reader -> shards in ``OUT/train`` and ``OUT/held_out``.

The same source and settings make the same bytes, in one go or in several: a shard is whole or absent, and what is done
is logged shard by shard (``log``). Each split is a pass of its own over the source, which makes only its own entries;
one sample is held in memory at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from megatron_qwen3vl.data.shards import write_shard
from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.frame import Entry, Format, Unwanted
from megatron_qwen3vl.importers.log import Mark, SplitLog, shard_name
from megatron_qwen3vl.importers.settings import CommonSettings

TRAIN, HELD_OUT = "train", "held_out"
LOGS = "import"
NAMED = 10  # lines of what was left out that a summary holds
Files = dict[str, bytes]


@dataclass(frozen=True)
class Import:
    """``settings`` is of the class that the format names."""

    format: Format
    source: Path
    out: Path
    settings: Any
    common: CommonSettings

    def record(self) -> dict[str, Any]:
        """What must be the same for an interrupted import to go on."""
        common = {name: v for name, v in asdict(self.common).items() if name not in ("index", "tokenizer")}
        settings = json.loads(json.dumps({**asdict(self.settings), **common}))  # as it will be read back
        return {"format": self.format.name, "source": str(self.source.absolute()), **settings}


@dataclass(frozen=True)
class Progress:
    """``samples`` of this split are written, ``part`` (0 to 1; None: not known) of the source lies behind. ``shard``:
    the name of a shard that is whole now."""

    split: str
    samples: int
    part: float | None
    shard: str | None = None


@dataclass(frozen=True)
class SplitSummary:
    """``named``: the first of what was left out; ``path_of_named`` has all."""

    name: str
    mark: Mark
    named: tuple[str, ...]
    path_of_named: Path


def run_import(task: Import, progress: Callable[[Progress], None]) -> tuple[SplitSummary, ...]:
    """Writes what is not there yet.

    Raises:
        UserError: the source is not of the format or cannot be read; ``out`` cannot be written, is being written by
            another import, or was begun with other settings.
    """
    try:
        with _claimed(task):
            splits = (TRAIN, HELD_OUT) if task.common.held_out else (TRAIN,)
            return tuple(_write_split(task, split, progress) for split in splits)
    except OSError as error:
        raise UserError(f"data import: {error.filename or task.out}: {error.strerror}") from error


@contextmanager
def _claimed(task: Import) -> Iterator[None]:
    """``out`` is this import's and nobody else writes there."""
    logs = task.out / LOGS
    settings = logs / "settings.json"
    if not settings.exists() and (strange := [*task.out.glob(f"{TRAIN}/*.tar"), *task.out.glob(f"{HELD_OUT}/*.tar")]):
        raise UserError(f"data import: {strange[0]} is there and is not of this import; name another OUT")
    logs.mkdir(parents=True, exist_ok=True)
    with open(logs / "lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"data import: another import is writing {task.out}; wait for it") from None
        _same_settings(task, settings)
        yield


def _same_settings(task: Import, path: Path) -> None:
    """Settings count from the first whole shard on: a wrong one that gave none can be mended in place."""
    now = task.record()
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):  # none yet, or cut off while it was written
        before = {}
    differing = [name for name in now if now[name] != before.get(name)]
    shards = [*task.out.glob(f"{TRAIN}/*.tar"), *task.out.glob(f"{HELD_OUT}/*.tar")]
    if differing and not shards:
        for log in path.parent.glob("*.jsonl"):
            log.unlink()
        path.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n")
    elif differing:
        raise UserError(
            [f"data import: {task.out} was begun with {name}={before.get(name)}, now it is {now[name]}; "
             "give the same, or name another OUT" for name in differing]
        )  # fmt: skip


def is_held_out(group: str, share: float) -> bool:
    """By a hash of its own: the one that chooses a video's stamps (``timestamps``) must not follow from the split."""
    return int.from_bytes(hashlib.sha256(f"held_out/{group}".encode()).digest()[:8], "big") < share * 2**64


def _write_split(task: Import, split: str, progress: Callable[[Progress], None]) -> SplitSummary:
    folder = task.out / split
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob(".*.tar.*"):
        partial.unlink()  # of a write that was killed
    log = SplitLog(task.out / LOGS, split, folder)
    try:
        if not log.mark.complete:
            _Writer(task, split, log, progress).write(folder)
        named = tuple(log.first_named(NAMED))
    finally:
        log.close()
    return SplitSummary(split, log.mark, named, task.out / LOGS / f"{split}_left_out.jsonl")


class _Writer:
    """One pass over the source for one split."""

    def __init__(self, task: Import, split: str, log: SplitLog, progress: Callable[[Progress], None]) -> None:
        self._task, self._split, self._log, self._progress = task, split, log, progress
        self._entries = log.mark.entries  # dealt with
        self._keys: set[str] = set()  # of the shard being written
        self._written = log.mark.samples
        self._part: float | None = None

    def write(self, folder: Path) -> None:
        samples = self._samples()
        for first in samples:
            path = folder / shard_name(self._log.mark.shards)
            count = write_shard(path, self._until_full(chain([first], samples)))
            self._log.shard_done(count, path.stat().st_size, self._entries)
            self._keys.clear()
            self._progress(Progress(self._split, self._written, self._part, f"{self._split}/{path.stem}"))
        self._log.all_done(self._entries)

    def _until_full(self, samples: Iterator[tuple[str, Files]]) -> Iterator[tuple[str, Files]]:
        common, size = self._task.common, 0
        for key, files in islice(samples, common.shard_samples):
            yield key, files
            self._written += 1
            size += sum(map(len, files.values()))
            if size >= common.shard_bytes:
                return

    def _samples(self) -> Iterator[tuple[str, Files]]:
        task, log, skipped = self._task, self._log, self._entries
        entries = islice(task.format.read(task.source, task.settings), task.common.limit)
        for number, entry in enumerate(entries):
            limit = task.common.limit
            self._part = entry.part if limit is None else max(entry.part or 0.0, (number + 1) / limit)
            self._progress(Progress(self._split, self._written, self._part))
            if number < skipped or not self._is_here(entry):
                continue
            self._entries = number + 1
            try:
                if entry.key in self._keys:
                    raise BadSample("the key is there twice")
                made = entry.make()
            except BadSample as bad:
                log.leave_out(entry.key, str(bad))
                continue
            except Unwanted as unwanted:
                log.unwanted(str(unwanted))
                continue
            for note in made.notes:
                log.note(entry.key, note)
            self._keys.add(entry.key)
            yield entry.key, dict(made.files)

    def _is_here(self, entry: Entry) -> bool:
        share = self._task.common.held_out
        return is_held_out(entry.key if entry.group is None else entry.group, share) == (self._split == HELD_OUT)
