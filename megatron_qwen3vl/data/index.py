"""What a shard holds, without its media: the file ``<shard>.tar.idx`` (``.idx`` inside a plain folder).

Planning needs lengths only. The index keeps, per sample, where its files lie, how many text tokens it has (for each
tokenizer it was counted with) and how they lie around its images, the sizes of its images and frames and when each
frame of a video file is shown; lengths for any pixel limits and any sampling follow, and where a long document may be
divided. ``indexing.py`` makes it.

File: 8 bytes magic, 8 bytes length of the header, header (JSON: stamp of the shard, damage, and name, type, length and
offset of each array), then the arrays, little-endian, memory-mapped. No pickle.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from megatron_qwen3vl.data.examine import Visual
from megatron_qwen3vl.data.places import LocalPlace, Stamp
from megatron_qwen3vl.data.shards import Member, Shard
from megatron_qwen3vl.data.timestamps import from_runs
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.errors import UserError

MAGIC = b"MQ3VIDX3"
EARLIER = (b"MQ3VIDX1", b"MQ3VIDX2")  # without video files; without what splitting needs
FOREIGN = bytes(8)  # megatron-energon lists the offsets of a tar's samples, the first of which is 0
_ALIGN = 64

# Array -> type. n samples, M members, I images and videos, B places where two text parts meet without an image between;
# *_text are UTF-8 strings in a row, *_ends where each ends.
ARRAYS = {
    "key_text": "u1",
    "key_ends": "<u4",  # [n]
    "member_starts": "<u4",  # [n + 1]
    "member_text": "u1",
    "member_ends": "<u4",  # [M]
    "member_offsets": "<i8",  # [M]
    "member_sizes": "<i8",  # [M]
    "visual_starts": "<u4",  # [n + 1]
    "visual_sizes": "<i4",  # [I x 2]: height, width before resizing
    "visual_frames": "<i4",  # [I]: frames of a video, 0 for an image
    "visual_fps": "<f8",  # [I]: of a frame list with a constant rate, else 0
    "visual_time_base": "<i4",  # [I x 2]: of a video file, else 0; see examine.Visual
    "run_starts": "<u4",  # [I + 1]: Visual.ticks as timestamps.to_runs has them
    "run_steps": "<i8",
    "run_counts": "<i4",
    "is_document": "u1",  # [n]: 0 for a conversation
    "break_starts": "<u4",  # [n + 1]
    "domain_of": "<i4",  # [n]: -1 names none
    "domain_text": "u1",
    "domain_ends": "<u4",
    "reason_of": "<i4",  # [n]: -1 can be used
    "reason_text": "u1",
    "reason_ends": "<u4",
}
# Arrays of each tokenizer, "NAME/" + its fingerprint, int32: [n] tokens beside the visual spans; [I] such tokens of the
# sample before each image and video; [B] such tokens of the sample before each break.
COUNTS = ("text_tokens", "text_before", "text_breaks")


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

    def has_counts(self, tokenizer: Tokenizer) -> bool:
        return all(f"{name}/{tokenizer.fingerprint}" in self.arrays for name in COUNTS)

    def counts(self, name: str, tokenizer: Tokenizer) -> np.ndarray:
        """One of ``COUNTS``. Raises KeyError where it was not counted with this tokenizer."""
        return self.arrays[f"{name}/{tokenizer.fingerprint}"]


def index_path(shard: Shard) -> Path:
    assert isinstance(shard.beside, LocalPlace)
    return shard.beside.path


def is_earlier(path: Path) -> bool:
    """Whether an earlier version of this program wrote it: as good as none."""
    return _begins_with(path) in EARLIER


def is_foreign(path: Path) -> bool:
    """Whether it is megatron-energon's index, which has the same name: as good as none, and not to be overwritten."""
    return _begins_with(path) == FOREIGN


def _begins_with(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC))
    except OSError:
        return b""


def write_index(index: ShardIndex, path: Path) -> None:
    """Whole or not at all. Raises OSError."""
    offset, table = 0, []
    for name, array in index.arrays.items():
        table.append({"name": name, "type": array.dtype.str, "length": len(array), "offset": offset})
        offset += -(-array.nbytes // _ALIGN) * _ALIGN
    header = json.dumps({"stamp": asdict(index.stamp), "damage": index.damage, "arrays": table}).encode()
    header += b" " * (-(len(header) + 16) % _ALIGN)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # other machines may be at it as well
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
        content = np.asarray(np.memmap(path, np.uint8, "r"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable index ({error}); run `data index` again") from None
    return replace(parse_index(content, str(path)), path=path)


def parse_index(content: np.ndarray, name: str) -> ShardIndex:
    """An index from the bytes of its file, uint8 [size]; ``name`` is for messages. Raises UserError."""
    try:
        if content[: len(MAGIC)].tobytes() != MAGIC:
            raise ValueError("not an index of this version")
        length = int.from_bytes(content[8:16].tobytes(), "little")
        header = json.loads(content[16 : 16 + length].tobytes())
        arrays = {}
        for row in header["arrays"]:
            if row["name"] not in ARRAYS and row["name"].partition("/")[0] not in COUNTS:
                raise ValueError(f"unknown array {row['name']}")
            kind = np.dtype(ARRAYS.get(row["name"], "<i4"))
            start = 16 + length + row["offset"]
            arrays[row["name"]] = content[start : start + row["length"] * kind.itemsize].view(kind)
        index = ShardIndex(None, Stamp(**header["stamp"]), tuple(header["damage"]), arrays)
        _check_whole(index, header["arrays"])
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
        raise UserError(f"{name} is not a readable index ({error}); run `data index` again") from None
    return index


def _check_whole(index: ShardIndex, table: Iterable[dict[str, object]]) -> None:
    """A cut-off file must not become wrong lengths."""
    for row in table:
        if len(index.arrays[str(row["name"])]) != row["length"]:
            raise ValueError(f"cut off inside {row['name']}")
    missing = [name for name in ARRAYS if name not in index.arrays]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
