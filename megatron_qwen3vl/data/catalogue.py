"""Lengths and patches of all rows of a source in one file, mapped: what a run plans from, opened in a moment.

All processes of a machine share one copy, through the page cache. A catalogue is kept in the run's index folder under
a digest of everything its lengths follow from, so a stale one is never found: each shard's name and version, tokenizer,
pixel limits, timestamps, sampling, sequence length, splitting, and ``VERSION`` of the rules themselves.

File: 8 bytes magic, zeros up to 64; int32 [rows, 2] (length, patches); the other arrays, each at a multiple of 64;
the footer (JSON: key, figures, and name, type, length and offset of each array), 8 bytes length of the footer, magic.
Little-endian; no pickle. The rows are written as shards are measured, so making one needs no memory for them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_qwen3vl.data.index import ShardIndex
from megatron_qwen3vl.data.index_files import bring_indexes
from megatron_qwen3vl.data.indexing import get_index
from megatron_qwen3vl.data.lengths import ShardRows, measure_shard
from megatron_qwen3vl.data.processes import ProcessDied, available_cores, map_in_order
from megatron_qwen3vl.data.progress import ShardProgress
from megatron_qwen3vl.data.shards import Shard, version_of
from megatron_qwen3vl.data.shown import Rules
from megatron_qwen3vl.data.survey import Survey, survey_of
from megatron_qwen3vl.errors import UserError

# Of what turns an index into rows (sampling, resizing, timestamps, dividing): raise it when one of them changes.
VERSION = 2
MAGIC = b"MQ3VCAT1"
_ALIGN = 64
_SHARDS_PER_PROCESS = 512  # fewer are measured sooner than another process has started
_ARRAYS = {
    "first_row": "<i8",  # [shards + 1]
    "first_sample": "<i8",  # [shards + 1]
    "split_row": "<i8",  # [S]: first row of each divided sample, ascending
    "split_extra": "<i8",  # [S + 1]: rows that divided samples have beyond one, of all before
    "digests": "u1",  # [shards x 32]: sha256 of each shard
}


@dataclass(frozen=True)
class Catalogue:
    """``table`` int32 [rows, 2]: length and patches. ``path`` is the file all is mapped from, None in memory.
    ``domains``: None stands for samples that name none."""

    path: Path | None
    table: np.ndarray
    arrays: dict[str, np.ndarray]
    domains: tuple[str | None, ...]
    damage: tuple[str, ...]
    survey: Survey  # at the sequence length that it was made for

    def __reduce__(self) -> tuple[Callable[..., Catalogue], tuple[object, ...]]:
        """Travels to worker processes as its path."""
        if self.path is None:
            return Catalogue, (None, self.table, self.arrays, self.domains, self.damage, self.survey)
        return read_catalogue, (self.path,)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def num_split(self) -> int:
        """Samples that are divided into several rows."""
        return len(self.arrays["split_row"])

    def locate(self, row: int) -> tuple[int, int, int, int]:
        """Shard, sample in it, first row of the sample and number of its rows. Raises IndexError."""
        if not 0 <= row < len(self):
            raise IndexError(f"sample {row} of {len(self)}")
        shard = int(np.searchsorted(self.arrays["first_row"], row, side="right")) - 1
        starts, extra = self.arrays["split_row"], self.arrays["split_extra"]
        before = int(np.searchsorted(starts, row, side="right"))  # divided samples that begin at or before the row
        first, count = row, 1
        if before:
            last = int(starts[before - 1])
            parts = int(extra[before] - extra[before - 1]) + 1
            if row < last + parts:
                first, count, before = last, parts, before - 1
        sample = first - int(extra[before])
        return shard, sample - int(self.arrays["first_sample"][shard]), first, count

    def digest(self, shard: int) -> str:
        return self.arrays["digests"][32 * shard : 32 * shard + 32].tobytes().hex()


@dataclass
class _Growing:
    """What is held of the shards measured so far, beside their rows."""

    first_row: array[int] = field(default_factory=lambda: array("q", [0]))
    first_sample: array[int] = field(default_factory=lambda: array("q", [0]))
    split_row: array[int] = field(default_factory=lambda: array("q"))
    split_extra: array[int] = field(default_factory=lambda: array("q", [0]))
    digests: bytearray = field(default_factory=bytearray)
    domains: set[str | None] = field(default_factory=set)
    damage: list[str] = field(default_factory=list)
    survey: Survey = Survey()

    def add(self, measured: Measured) -> None:
        rows = measured.rows
        self.survey = self.survey.then(measured.survey, self.first_row[-1])
        extra = rows.split_parts - 1
        firsts = rows.split_samples + np.cumsum(extra) - extra + self.first_row[-1]
        self.split_row.extend(firsts.tolist())
        self.split_extra.extend((self.split_extra[-1] + np.cumsum(extra)).tolist())
        self.first_row.append(self.first_row[-1] + len(rows.table))
        self.first_sample.append(self.first_sample[-1] + len(rows.table) - int(extra.sum()))
        self.digests += bytes.fromhex(measured.digest)
        self.domains.update(measured.domains)
        self.damage += measured.damage

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.frombuffer(bytes(getattr(self, name)), kind) for name, kind in _ARRAYS.items()}

    def sorted_domains(self) -> tuple[str | None, ...]:
        return tuple(sorted(self.domains, key=lambda name: (name is not None, name or "")))


@dataclass(frozen=True)
class Measured:
    """One shard's part of a catalogue. ``index`` where it only lives in memory."""

    rows: ShardRows
    digest: str
    domains: tuple[str | None, ...]
    damage: tuple[str, ...]
    survey: Survey
    index: ShardIndex | None


@dataclass(frozen=True)
class _Job:
    rules: Rules
    cache: Path | None


def _measure(job: _Job, shard: Shard) -> Measured | UserError:
    try:
        index = get_index(shard, job.rules.tokenizer, job.cache)
    except UserError as error:
        return error
    rows = measure_shard(index, job.rules)
    domains = tuple(None if number < 0 else index.string("domain", number) for number in rows.domains)
    survey = survey_of(rows.table[:, 0], job.rules.sampling.sequence_length)
    held = index if index.path is None else None
    return Measured(rows, index.stamp.digest, domains, index.damage, survey, held)


def _measure_all(name: str, shards: Sequence[Shard], job: _Job) -> Iterator[Measured]:
    """Raises UserError, at the end, with the problems of all shards."""
    problems: list[str] = []
    # what is not kept in a file would have to travel
    processes = min(available_cores(), 1 + len(shards) // _SHARDS_PER_PROCESS) if job.cache is not None else 1
    if job.cache is not None:
        bring_indexes(shards, job.rules.tokenizer, job.cache)
    with ShardProgress(f"source {name}: lengths", len(shards)) as progress:
        for shard, measured in zip(shards, map_in_order(_measure, job, shards, processes), strict=True):
            if isinstance(measured, UserError):
                problems += measured.problems
            elif isinstance(measured, ProcessDied):
                problems.append(f"{shard.place.name}: {measured}; memory may have run out")
            else:
                progress.advance(len(measured.rows.table))
                yield measured
    if problems:
        raise UserError(problems)


def hold_catalogue(name: str, shards: Sequence[Shard], rules: Rules) -> tuple[Catalogue, dict[int, ShardIndex]]:
    """A catalogue in memory, and the indexes, by shard, of those that have none beside them.

    Raises:
        UserError: shards that cannot be read, or changed since they were indexed.
    """
    growing, tables, held = _Growing(), [np.zeros((0, 2), np.int32)], {}
    for number, measured in enumerate(_measure_all(name, shards, _Job(rules, None))):
        growing.add(measured)
        tables.append(measured.rows.table)
        if measured.index is not None:
            held[number] = measured.index
    catalogue = Catalogue(
        None, np.concatenate(tables), growing.arrays(), growing.sorted_domains(), tuple(growing.damage), growing.survey
    )
    return catalogue, held


def find_catalogue(name: str, shards: Sequence[Shard], rules: Rules, folder: Path) -> Catalogue:
    """The catalogue of a source in the run's index folder; made there by the first process that needs it.

    Raises:
        UserError: shards that cannot be read or changed since they were indexed; a folder that cannot be written.
    """
    key = catalogue_key(name, shards, rules)
    path = folder / f"{name}-{key[:32]}.catalogue"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            try:
                return read_catalogue(path, key)
            except (OSError, ValueError, KeyError, TypeError):
                pass  # not there yet, or damaged: make it
            _make(path, key, name, shards, _Job(rules, folder))
            return read_catalogue(path, key)
    except (OSError, ValueError) as error:
        raise UserError(f"source {name}: cannot keep its catalogue {path}: {error}") from None


def catalogue_key(name: str, shards: Sequence[Shard], rules: Rules) -> str:
    """A digest of all that the lengths follow from. Raises UserError for a shard that cannot be reached."""
    facts = {
        "version": VERSION,
        "name": name,
        "tokenizer": rules.tokenizer.fingerprint,
        "limits": asdict(rules.limits),
        "vision": [rules.vision.patch_size, rules.vision.spatial_merge_size, rules.vision.temporal_patch_size],
        "timestamps": rules.timestamps,
        "sampling": asdict(rules.sampling),
        "split": rules.split,
        "shards": [[shard.name, shard.place.identity, version_of(shard)] for shard in shards],
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of the machine at a time, where the file system has locks; elsewhere each makes its own, alike."""
    with open(path.with_name(f".{path.name}.lock"), "wb") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however that ends
        yield


def _make(path: Path, key: str, name: str, shards: Sequence[Shard], job: _Job) -> None:
    growing = _Growing()
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # other machines may be at it as well
    try:
        with open(partial, "wb") as file:
            file.write(MAGIC.ljust(_ALIGN, b"\0"))
            for measured in _measure_all(name, shards, job):
                file.write(np.ascontiguousarray(measured.rows.table, "<i4").tobytes())
                growing.add(measured)
            _close(file, key, growing)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _close(file: BinaryIO, key: str, growing: _Growing) -> None:
    """The arrays behind the rows, and the footer."""
    table = []
    for name, values in growing.arrays().items():
        file.write(b"\0" * (-file.tell() % _ALIGN))
        table.append({"name": name, "length": len(values), "offset": file.tell()})
        file.write(values.tobytes())
    footer = {
        "key": key,
        "rows": growing.first_row[-1],
        "domains": growing.sorted_domains(),
        "damage": growing.damage,
        "survey": asdict(growing.survey),
        "arrays": table,
    }
    data = json.dumps(footer).encode()
    file.write(data + len(data).to_bytes(8, "little") + MAGIC)


def read_catalogue(path: Path, key: str | None = None) -> Catalogue:
    """Map a catalogue file; with ``key``, only that of this key.

    Raises:
        OSError, ValueError, KeyError, TypeError: absent, not whole, or of another key.
    """
    content = np.asarray(np.memmap(path, np.uint8, "r"))
    end = len(content) - 16
    if end < _ALIGN or content[-8:].tobytes() != MAGIC or content[:8].tobytes() != MAGIC:
        raise ValueError("not a whole catalogue of this version")
    begin = end - int.from_bytes(content[end : end + 8].tobytes(), "little")
    if begin < _ALIGN:
        raise ValueError("not a whole catalogue")
    footer = json.loads(content[begin:end].tobytes())
    if key is not None and footer["key"] != key:
        raise ValueError("a catalogue of something else")
    arrays = {}
    for row in footer["arrays"]:
        kind = np.dtype(_ARRAYS[row["name"]])
        arrays[row["name"]] = content[row["offset"] : row["offset"] + row["length"] * kind.itemsize].view(kind)
    table = content[_ALIGN : _ALIGN + 8 * footer["rows"]].view("<i4").reshape(-1, 2)
    survey = Survey(**footer["survey"])
    return Catalogue(path, table, arrays, tuple(footer["domains"]), tuple(footer["damage"]), survey)
