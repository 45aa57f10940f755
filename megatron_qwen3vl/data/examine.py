"""What the index keeps of one sample: its text tokens, and of each image and video what every length follows from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from megatron_qwen3vl.data.compose import Picture, Record, Video, VideoFile, compose
from megatron_qwen3vl.data.shards import Group, Member, Shard, read_member
from megatron_qwen3vl.data.timestamps import frame_times
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.data.video import probe
from megatron_qwen3vl.data.vision import image_size
from megatron_qwen3vl.errors import BadSample

_HEAD = 32 * 1024  # bytes in which nearly every JPEG has its header
_JPEG, _SEVERAL_PICTURES = b"\xff\xd8\xff", b"MPF\0"

MEDIA_FREE = ("json", "txt")  # what rendering reads without pixels


@dataclass(frozen=True)
class Visual:
    """An image or a video as stored, before resizing and sampling.

    ``frames``: all of a video, 0 for an image. ``fps`` of a frame list with a constant rate, else 0. ``time_base``:
    seconds of a tick of a video file, as a fraction; (0, 0) otherwise. ``ticks`` int64 [frames]: of a video file, when
    each frame is shown; of a frame list with times of its own, the bits of these float64; else empty.
    """

    height: int
    width: int
    frames: int = 0
    fps: float = 0.0
    time_base: tuple[int, int] = (0, 0)
    ticks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def is_file(self) -> bool:
        return self.time_base[1] > 0

    @property
    def times(self) -> np.ndarray:
        """float64 [frames]: seconds of every stored frame."""
        if self.is_file:
            return self.ticks * self.time_base[0] / self.time_base[1]
        return self.ticks.view(np.float64) if len(self.ticks) else np.array(frame_times(self.frames, self.fps))


@dataclass(frozen=True)
class Facts:
    """A sample that cannot be used has a ``reason`` and no length.

    ``text_before``: text tokens before each image and video; ``text_breaks``: before each place where two text parts
    of a document meet without an image between.
    """

    text_tokens: int
    text_before: list[int]
    text_breaks: list[int]
    visuals: list[Visual]
    is_document: bool
    domain: str | None
    reason: str | None


def examine(shard: Shard, group: Group, tokenizer: Tokenizer) -> Facts:
    """Reads every file of the sample; never raises for a bad one.

    Raises:
        OSError: the shard cannot be read.
    """
    files = {member.name: member for member in group.members}
    try:
        if len(files) != len(group.members):
            raise BadSample("a file of the sample is in the shard twice")
        composition = compose(read_record(shard, group.key, group.members), tokenizer)
        seen: dict[Picture | Video | VideoFile, Visual] = {}  # a picture may be named thousands of times
        for visual in composition.visuals:
            if visual not in seen:
                seen[visual] = _look_at(visual, shard, group.key, files)
        visuals = [seen[visual] for visual in composition.visuals]
    except BadSample as bad:
        return Facts(0, [], [], [], True, None, str(bad))
    before, breaks = composition.text_marks()
    return Facts(
        composition.num_text_tokens, before, breaks, visuals, composition.is_document, composition.domain, None
    )


def _look_at(visual: Picture | Video | VideoFile, shard: Shard, key: str, files: Mapping[str, Member]) -> Visual:
    if isinstance(visual, VideoFile):
        try:
            facts = probe(read_member(shard, key, files[visual.member]))
        except BadSample as bad:
            raise BadSample(f"{visual.member}: {bad}") from None
        base: Fraction = facts.time_base
        return Visual(facts.height, facts.width, len(facts.ticks), 0.0, (base.numerator, base.denominator), facts.ticks)
    names = (visual.member,) if isinstance(visual, Picture) else visual.frames
    sizes = {_size_of(shard, key, files[name]) for name in set(names)}
    if len(sizes) > 1:
        raise BadSample(f"frames of a video differ in size: {sorted(sizes)[:3]}")
    height, width = sizes.pop()
    if isinstance(visual, Picture):
        return Visual(height, width)
    if visual.fps is not None:
        return Visual(height, width, len(names), visual.fps)
    return Visual(height, width, len(names), ticks=np.array(visual.times, np.float64).view(np.int64))


def _size_of(shard: Shard, key: str, member: Member) -> tuple[int, int]:
    """Of a JPEG from its head, where all of its header is there: the rest is not read."""
    if member.size > _HEAD:
        head = read_member(shard, key, Member(member.name, member.offset, _HEAD))
        if head.startswith(_JPEG) and _SEVERAL_PICTURES not in head:
            try:
                return image_size(head)
            except BadSample:
                pass  # a header longer than that, or none: the whole file decides
    return image_size(read_member(shard, key, member))


def read_record(shard: Shard, key: str, members: Sequence[Member]) -> Record:
    """Names of all files and the bytes of the JSON and the text.

    Raises:
        BadSample: they cannot be read.
    """
    texts = {member.name: read_member(shard, key, member) for member in members if member.name in MEDIA_FREE}
    return Record(tuple(member.name for member in members), texts)
