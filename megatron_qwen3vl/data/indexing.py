"""Making indexes: ``data index PATH`` beside the shards, and what a run makes for shards that came without.

Each shard by itself, in several processes. A file appears whole or not at all, and shards whose index is current are
passed over, so that a broken-off run goes on where it was.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron_qwen3vl.data.examine import Facts, examine
from megatron_qwen3vl.data.index import (
    ARRAYS,
    COUNTS,
    ShardIndex,
    index_path,
    is_earlier,
    is_foreign,
    read_index,
    write_index,
)
from megatron_qwen3vl.data.index_files import get_remote_index, is_of, stored_path
from megatron_qwen3vl.data.processes import ProcessDied, map_in_order
from megatron_qwen3vl.data.remote import RemotePlace
from megatron_qwen3vl.data.shards import Group, Shard, scan, take_stamp
from megatron_qwen3vl.data.timestamps import to_runs
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.errors import UserError


@dataclass(frozen=True)
class Indexed:
    """What became of one shard. ``made``: its index was not current. ``problem``: why it has none."""

    name: str
    made: bool = False
    samples: int = 0
    unusable: int = 0
    num_bytes: int = 0
    cpu_seconds: float = 0.0
    damage: tuple[str, ...] = ()
    problem: str | None = None


def index_shards(
    shards: Sequence[Shard], tokenizer: Tokenizer, to: Path | None, num_processes: int, progress: Callable[[int], None]
) -> list[Indexed]:
    """Write the index of every shard (``data index``) beside it or, with ``to``, into that folder.

    Counts made with other tokenizers are kept as long as the shard has not changed. A shard that cannot be indexed
    does not stop the others.

    Args:
        progress: called after each shard with the number of its samples.
    """
    results = []
    job = IndexJob(tokenizer, to)
    for shard, result in zip(shards, map_in_order(index_one, job, shards, num_processes), strict=True):
        if isinstance(result, ProcessDied):
            problem = f"{shard.place.name}: {result}; memory may have run out: try fewer --workers"
            result = Indexed(shard.name, problem=problem)
        results.append(result)
        progress(result.samples)
    return results


@dataclass(frozen=True)
class IndexJob:
    """``to``: a folder for the indexes; None: beside each shard."""

    tokenizer: Tokenizer
    to: Path | None


def index_one(job: IndexJob, shard: Shard) -> Indexed:
    """Bring the index of one shard up to date. Never raises."""
    if job.to is not None:
        return _index_into(stored_path(shard, job.tokenizer, job.to), shard, job.tokenizer)
    if not isinstance(shard.beside, RemotePlace):
        return _index_into(index_path(shard), shard, job.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "idx"
        try:
            with suppress(FileNotFoundError):
                target.write_bytes(shard.beside.content())
            result = _index_into(target, shard, job.tokenizer)
            if result.made:
                shard.beside.write(target.read_bytes())
        except OSError as error:
            return Indexed(shard.name, problem=f"data index: {error.strerror}")
    return result


def _index_into(target: Path, shard: Shard, tokenizer: Tokenizer) -> Indexed:
    begun = time.process_time()
    if is_foreign(target):
        name = shard.place.name
        mend = f"`data index {name} --to FOLDER` and storage.indexes=FOLDER leave it as it is"
        return Indexed(shard.name, problem=f"data index: {name}.idx is megatron-energon's index; {mend}")
    try:
        index, made = _current(shard, tokenizer, target), False
        if index is None:
            index, made = _with_counts_of(build_index(shard, tokenizer), target), True
            target.parent.mkdir(parents=True, exist_ok=True)
            write_index(index, target)
        return Indexed(
            name=shard.name,
            made=made,
            samples=len(index),
            unusable=int((index.arrays["reason_of"] >= 0).sum()),
            num_bytes=target.stat().st_size,
            cpu_seconds=time.process_time() - begun,
            damage=index.damage,
        )
    except UserError as error:
        return Indexed(shard.name, problem="; ".join(error.problems))
    except OSError as error:
        return Indexed(shard.name, problem=f"data index: cannot write {target}: {error.strerror}")


def get_index(shard: Shard, tokenizer: Tokenizer, cache: Path | None) -> ShardIndex:
    """The index beside the shard; where there is none for this tokenizer, one from ``cache`` or made now.

    Nothing is written beside the shard. With ``cache`` None, what is made stays in memory.

    Raises:
        UserError: the index beside the shard is of another state of the shard, or unreadable; a shard behind an
            address that has none.
    """
    if isinstance(shard.place, RemotePlace):
        return get_remote_index(shard, tokenizer, cache)
    beside = index_path(shard)
    if beside.is_file() and not is_earlier(beside) and not is_foreign(beside):
        index = read_index(beside)
        if not is_of(index, shard):
            name = shard.place.name
            raise UserError(
                f"{name} has changed since it was indexed; run `data index {name}` again to use it as it is now, "
                f"or restore the shard"
            )
        if index.has_counts(tokenizer):
            return index
    if cache is None:
        return build_index(shard, tokenizer)
    stored = stored_path(shard, tokenizer, cache)
    try:
        index = read_index(stored)
        if index.has_counts(tokenizer) and is_of(index, shard):
            return index
    except UserError:
        pass  # not there yet, or a damaged cache: make it again
    index = build_index(shard, tokenizer)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_index(index, stored)
    except OSError as error:
        raise UserError(f"cannot write the index cache {cache}: {error.strerror}") from None
    return read_index(stored)


def reopen_index(shard: Shard, tokenizer: Tokenizer, cache: Path | None, digest: str) -> ShardIndex:
    """What ``get_index`` gave before for this state of the shard, without looking at the shard.

    Raises:
        UserError: it has gone, or is now of another state.
    """
    places = [] if isinstance(shard.place, RemotePlace) else [index_path(shard)]
    if cache is not None:
        places.append(stored_path(shard, tokenizer, cache))
    for place in places:
        try:
            index = read_index(place)
        except UserError:
            continue
        if index.has_counts(tokenizer) and index.stamp.digest == digest:
            return index
    raise UserError(f"the index of {shard.place.name} was changed or removed while it was used; start again")


def _current(shard: Shard, tokenizer: Tokenizer, target: Path) -> ShardIndex | None:
    try:
        index = read_index(target)
    except UserError:
        return None
    return index if index.has_counts(tokenizer) and is_of(index, shard) else None


def _with_counts_of(index: ShardIndex, target: Path) -> ShardIndex:
    try:
        old = read_index(target)
    except UserError:
        return index
    if old.stamp.digest != index.stamp.digest:
        return index
    kept = {name: array for name, array in old.arrays.items() if name.partition("/")[0] in COUNTS}
    return ShardIndex(None, index.stamp, index.damage, kept | index.arrays)


def build_index(shard: Shard, tokenizer: Tokenizer) -> ShardIndex:
    """The index of a shard, in memory; reads every file of it.

    Raises:
        UserError: the shard cannot be read.
    """
    stamp = take_stamp(shard)
    rows = _Rows()
    with shard.place.gathered() as place:
        near = replace(shard, place=place)
        found = scan(near)
        for group in found.groups:
            try:
                rows.add(group, examine(near, group, tokenizer))
            except OSError as error:
                raise UserError(f"shards: cannot read {group.key} of {shard.place.name}: {error.strerror}") from None
    return ShardIndex(None, stamp, found.damage, rows.arrays(tokenizer))


class _Strings:
    """Grows a string table."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.ends: list[int] = []

    def add(self, string: str) -> int:
        self.text += string.encode("utf-8", "replace")
        self.ends.append(len(self.text))
        return len(self.ends) - 1


class _Names(_Strings):
    """A string table without repeats."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[str, int] = {}

    def number(self, string: str | None) -> int:
        if string is None:
            return -1
        if string not in self._numbers:
            self._numbers[string] = self.add(string)
        return self._numbers[string]


class _Rows:
    """Grows the arrays of an index, sample by sample."""

    def __init__(self) -> None:
        self._keys, self._members, self._domains, self._reasons = _Strings(), _Strings(), _Names(), _Names()
        grown = [*(name for name in ARRAYS if not name.endswith(("_text", "_ends"))), *COUNTS]
        self._columns: dict[str, list[float]] = {name: [] for name in grown}
        for name in ("member_starts", "visual_starts", "run_starts", "break_starts"):
            self._columns[name].append(0)

    def add(self, group: Group, facts: Facts) -> None:
        columns = self._columns
        self._keys.add(group.key)
        for member in group.members:
            self._members.add(member.name)
            columns["member_offsets"].append(member.offset)
            columns["member_sizes"].append(member.size)
        columns["member_starts"].append(len(columns["member_offsets"]))
        for visual in facts.visuals:
            columns["visual_sizes"] += [visual.height, visual.width]
            columns["visual_frames"].append(visual.frames)
            columns["visual_fps"].append(visual.fps)
            columns["visual_time_base"] += visual.time_base
            steps, counts = to_runs(visual.ticks)
            columns["run_steps"] += steps.tolist()
            columns["run_counts"] += counts.tolist()
            columns["run_starts"].append(len(columns["run_steps"]))
        columns["visual_starts"].append(len(columns["visual_frames"]))
        columns["is_document"].append(facts.is_document)
        columns["domain_of"].append(self._domains.number(facts.domain))
        columns["reason_of"].append(self._reasons.number(facts.reason))
        columns["text_tokens"].append(facts.text_tokens)
        columns["text_before"] += facts.text_before
        columns["text_breaks"] += facts.text_breaks
        columns["break_starts"].append(len(columns["text_breaks"]))

    def arrays(self, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
        arrays = {name: np.array(values, ARRAYS[name]) for name, values in self._columns.items() if name in ARRAYS}
        tables = (("key", self._keys), ("member", self._members), ("domain", self._domains), ("reason", self._reasons))
        for name, strings in tables:
            arrays[f"{name}_text"] = np.frombuffer(bytes(strings.text), np.uint8)
            arrays[f"{name}_ends"] = np.array(strings.ends, "<u4")
        for name in COUNTS:
            arrays[f"{name}/{tokenizer.fingerprint}"] = np.array(self._columns[name], "<i4")
        return arrays
