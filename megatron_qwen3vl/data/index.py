"""What a shard holds, without its media: the file ``<shard>.tar.idx`` (``.idx`` inside a plain folder).

Planning needs lengths only. The index keeps, per sample, where its files lie, how many text tokens it has (for each
tokenizer it was counted with), the sizes of its images and frames and when each frame of a video file is shown; lengths
for any pixel limits and any sampling follow.

File: 8 bytes magic, 8 bytes length of the header, header (JSON: stamp of the shard, damage, and name, type, length and
offset of each array), then the arrays, little-endian, memory-mapped. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megatron_qwen3vl.data.examine import Visual, examine
from megatron_qwen3vl.data.places import LocalPlace, Stamp
from megatron_qwen3vl.data.shards import Member, Shard, find_shards, scan, take_stamp
from megatron_qwen3vl.data.timestamps import from_runs, to_runs
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.errors import UserError

MAGIC = b"MQ3VIDX2"
EARLIER = (b"MQ3VIDX1",)  # without video files
_ALIGN = 64
_TEXT_TOKENS = "text_tokens/"  # + fingerprint of the tokenizer

# Array -> type. n samples, M members, I images and videos; *_text are UTF-8 strings in a row, *_ends where each ends.
_ARRAYS = {
    "key_text": "u1",
    "key_ends": "<i8",  # [n]
    "member_starts": "<i8",  # [n + 1]
    "member_text": "u1",
    "member_ends": "<i8",  # [M]
    "member_offsets": "<i8",  # [M]
    "member_sizes": "<i8",  # [M]
    "visual_starts": "<i8",  # [n + 1]
    "visual_sizes": "<i4",  # [I x 2]: height, width before resizing
    "visual_frames": "<i4",  # [I]: frames of a video, 0 for an image
    "visual_fps": "<f8",  # [I]: of a frame list with a constant rate, else 0
    "visual_time_base": "<i4",  # [I x 2]: of a video file, else 0; see examine.Visual
    "run_starts": "<i8",  # [I + 1]: Visual.ticks as timestamps.to_runs has them
    "run_steps": "<i8",
    "run_counts": "<i4",
    "domain_of": "<i4",  # [n]: -1 names none
    "domain_text": "u1",
    "domain_ends": "<i8",
    "reason_of": "<i4",  # [n]: -1 can be used
    "reason_text": "u1",
    "reason_ends": "<i8",
}


@dataclass(frozen=True)
class ShardIndex:
    """``path`` is the file it is mapped from, None when it only lives in memory."""

    path: Path | None
    stamp: Stamp
    damage: tuple[str, ...]
    arrays: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.arrays["key_ends"])

    def __reduce__(self) -> tuple[Callable[..., ShardIndex], tuple[object, ...]]:
        """Travels to worker processes as its path, not as its arrays."""
        if self.path is None:
            return ShardIndex, (None, self.stamp, self.damage, self.arrays)
        return read_index, (self.path,)

    def string(self, table: str, number: int) -> str:
        """Entry of a string table: ``key``, ``member``, ``domain`` or ``reason``."""
        ends = self.arrays[f"{table}_ends"]
        start = int(ends[number - 1]) if number else 0
        return self.arrays[f"{table}_text"][start : int(ends[number])].tobytes().decode("utf-8")

    def members(self, sample: int) -> list[Member]:
        first, last = self.arrays["member_starts"][sample : sample + 2].tolist()
        offsets, sizes = self.arrays["member_offsets"], self.arrays["member_sizes"]
        return [Member(self.string("member", m), int(offsets[m]), int(sizes[m])) for m in range(first, last)]

    def visual(self, number: int) -> Visual:
        """An image or video, by its number in the shard."""
        arrays = self.arrays
        height, width = arrays["visual_sizes"][2 * number : 2 * number + 2].tolist()
        numerator, denominator = arrays["visual_time_base"][2 * number : 2 * number + 2].tolist()
        first, last = arrays["run_starts"][number : number + 2].tolist()
        ticks = from_runs(arrays["run_steps"][first:last], arrays["run_counts"][first:last])
        frames, fps = int(arrays["visual_frames"][number]), float(arrays["visual_fps"][number])
        return Visual(height, width, frames, fps, (numerator, denominator), ticks)

    def visuals(self, sample: int) -> list[Visual]:
        first, last = self.arrays["visual_starts"][sample : sample + 2].tolist()
        return [self.visual(number) for number in range(first, last)]

    def domain(self, sample: int) -> str | None:
        number = int(self.arrays["domain_of"][sample])
        return None if number < 0 else self.string("domain", number)

    def reason(self, sample: int) -> str | None:
        """Why the sample cannot be used at all; None when it can."""
        number = int(self.arrays["reason_of"][sample])
        return None if number < 0 else self.string("reason", number)

    def text_tokens(self, tokenizer: Tokenizer) -> np.ndarray | None:
        """int32 [n]: tokens beside the visual spans; None when not counted with this tokenizer."""
        return self.arrays.get(_TEXT_TOKENS + tokenizer.fingerprint)


def index_path(shard: Shard) -> Path:
    assert isinstance(shard.beside, LocalPlace)
    return shard.beside.path


def build_index(
    path: Path, tokenizer: Tokenizer, progress: Callable[[str, int, int], None] | None = None
) -> list[ShardIndex]:
    """Index every shard of a folder, or one tar, and write the indexes beside the shards (``data index``).

    Counts made with other tokenizers are kept as long as the shard has not changed.

    Args:
        progress: called after each shard with its name, its number from 1, and the number of shards.

    Raises:
        UserError: no shards, or a place that cannot be written.
    """
    shards = find_shards(str(path), Path.cwd())
    indexes = []
    for number, shard in enumerate(shards, 1):
        target = index_path(shard)
        index = _with_counts_of(_build(shard, tokenizer), target)
        try:
            _write(index, target)
        except OSError as error:
            raise UserError(f"data index: cannot write {target}: {error.strerror}") from None
        indexes.append(read_index(target))
        if progress is not None:
            progress(shard.name, number, len(shards))
    return indexes


def get_index(shard: Shard, tokenizer: Tokenizer, cache: Path | None) -> ShardIndex:
    """The index beside the shard; where there is none for this tokenizer, one from ``cache`` or made now.

    Nothing is written beside the shard. With ``cache`` None, what is made stays in memory.

    Raises:
        UserError: the index beside the shard is of another state of the shard, or unreadable.
    """
    beside = index_path(shard)
    if beside.is_file() and not _is_earlier(beside):
        index = read_index(beside)
        if not _is_of(index, shard):
            raise UserError(f"{beside} is older than its shard; run `data index {shard.place.name}` again")
        if index.text_tokens(tokenizer) is not None:
            return index
    if cache is None:
        return _build(shard, tokenizer)
    place = hashlib.sha256(os.fsencode(shard.place.identity)).hexdigest()
    stored = cache / f"{place[:32]}-{tokenizer.fingerprint[:16]}.idx"
    try:
        index = read_index(stored)
        if index.text_tokens(tokenizer) is not None and _is_of(index, shard):
            return index
    except UserError:
        pass  # not there yet, or a damaged cache: make it again
    index = _build(shard, tokenizer)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _write(index, stored)
    except OSError as error:
        raise UserError(f"cannot write the index cache {cache}: {error.strerror}") from None
    return read_index(stored)


def _is_earlier(path: Path) -> bool:
    """Whether an earlier version of this program wrote it: as good as none, for it knows nothing of video files."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) in EARLIER
    except OSError:
        return False


def _is_of(index: ShardIndex, shard: Shard) -> bool:
    return take_stamp(shard, index.stamp).digest == index.stamp.digest


def _with_counts_of(index: ShardIndex, target: Path) -> ShardIndex:
    try:
        old = read_index(target)
    except UserError:
        return index
    if old.stamp.digest != index.stamp.digest:
        return index
    kept = {name: array for name, array in old.arrays.items() if name.startswith(_TEXT_TOKENS)}
    return ShardIndex(None, index.stamp, index.damage, kept | index.arrays)


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


def _build(shard: Shard, tokenizer: Tokenizer) -> ShardIndex:
    stamp = take_stamp(shard)
    found = scan(shard)
    keys, members, domains, reasons = _Strings(), _Strings(), _Names(), _Names()
    columns: dict[str, list[float]] = {name: [] for name in _ARRAYS if not name.endswith(("_text", "_ends"))}
    columns["member_starts"].append(0)
    columns["visual_starts"].append(0)
    columns["run_starts"].append(0)
    text_tokens = []
    for group in found.groups:
        try:
            facts = examine(shard, group, tokenizer)
        except OSError as error:
            raise UserError(f"shards: cannot read {group.key} of {shard.place.name}: {error.strerror}") from None
        keys.add(group.key)
        for member in group.members:
            members.add(member.name)
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
        columns["domain_of"].append(domains.number(facts.domain))
        columns["reason_of"].append(reasons.number(facts.reason))
        text_tokens.append(facts.text_tokens)
    arrays = {name: np.array(values, _ARRAYS[name]) for name, values in columns.items()}
    for name, strings in (("key", keys), ("member", members), ("domain", domains), ("reason", reasons)):
        arrays[f"{name}_text"] = np.frombuffer(bytes(strings.text), np.uint8)
        arrays[f"{name}_ends"] = np.array(strings.ends, "<i8")
    arrays[_TEXT_TOKENS + tokenizer.fingerprint] = np.array(text_tokens, "<i4")
    return ShardIndex(None, stamp, found.damage, arrays)


def _write(index: ShardIndex, path: Path) -> None:
    offset, table = 0, []
    for name, array in index.arrays.items():
        table.append({"name": name, "type": array.dtype.str, "length": len(array), "offset": offset})
        offset += -(-array.nbytes // _ALIGN) * _ALIGN
    header = json.dumps({"stamp": asdict(index.stamp), "damage": index.damage, "arrays": table}).encode()
    header += b" " * (-(len(header) + 16) % _ALIGN)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(MAGIC + len(header).to_bytes(8, "little") + header)
            for array in index.arrays.values():
                file.write(array.tobytes() + b"\0" * (-array.nbytes % _ALIGN))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_index(path: Path) -> ShardIndex:
    """Map an index file.

    Raises:
        UserError: absent, or not a whole index file.
    """
    try:
        with open(path, "rb") as file:
            if file.read(8) != MAGIC:
                raise ValueError("not an index of this version")
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, path.stat().st_size)))
        content = np.asarray(np.memmap(path, np.uint8, "r"))
        arrays = {}
        for row in header["arrays"]:
            if row["name"] not in _ARRAYS and not row["name"].startswith(_TEXT_TOKENS):
                raise ValueError(f"unknown array {row['name']}")
            kind = np.dtype(_ARRAYS.get(row["name"], "<i4"))
            start = 16 + length + row["offset"]
            arrays[row["name"]] = content[start : start + row["length"] * kind.itemsize].view(kind)
        index = ShardIndex(path, Stamp(**header["stamp"]), tuple(header["damage"]), arrays)
        _check_whole(index, header["arrays"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is not a readable index ({error}); run `data index` again") from None
    return index


def _check_whole(index: ShardIndex, table: Iterable[dict[str, object]]) -> None:
    """A cut-off file must not become wrong lengths."""
    for row in table:
        if len(index.arrays[str(row["name"])]) != row["length"]:
            raise ValueError(f"cut off inside {row['name']}")
    missing = [name for name in _ARRAYS if name not in index.arrays]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
