"""``data frames PATH OUT``: video files become sampled frames once, so that training decodes JPEGs.

Every ``{"type": "video", "video": NAME}`` becomes a frame list with the true time of each frame; all else stays. In a
folder of loose files, ``KEY.mp4`` with or without ``KEY.txt`` becomes a document.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from megatron_qwen3vl.data.limits import VIDEO_EXTENSIONS
from megatron_qwen3vl.data.sampling import Sampling
from megatron_qwen3vl.data.shards import Group, Shard, find_shards, read_member, scan, write_shard
from megatron_qwen3vl.data.video import decode_frames, probe
from megatron_qwen3vl.errors import BadSample, UserError

SAMPLES_PER_SHARD = 500  # of a folder of loose files
_QUALITY = 90
_EXACT_S = 1e-9  # a rate stands for times that it gives this exactly
_GROUP = 2  # frames of a temporal group, in every Qwen3-VL model

Files = dict[str, bytes]


@dataclass(frozen=True)
class FramesSummary:
    """``bad``: SHARD/KEY and the reason of each sample that was left out, and what is damaged of a shard."""

    samples: int
    videos: int
    frames: int
    bad: tuple[str, ...]


def write_frames(
    path: Path, out: Path, sampling: Sampling, side: int | None, progress: Callable[[str], None]
) -> FramesSummary:
    """Shards of ``path`` (a tar, a folder of tars, a folder of loose files) -> shards of frames in ``out``.

    Args:
        side: the most pixels of a frame's longer side; None keeps the size.
        progress: is told each finished shard's name.

    Raises:
        UserError: no shards there, ``out`` is inside ``path`` or cannot be written.
    """
    if out.resolve().is_relative_to(path.resolve()) and path.is_dir():
        raise UserError(f"data frames: {out} is inside {path}; choose another folder")
    converter = _Converter(sampling, side)
    samples = 0
    for shard in find_shards(str(path.absolute()), path.absolute().parent):
        converted = converter.convert(shard)
        size = None if shard.is_tar else SAMPLES_PER_SHARD
        for number, first in enumerate(converted):
            name = shard.name if shard.is_tar else f"{number:05d}"
            target = out / f"{name}.tar"
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                samples += write_shard(target, chain([first], islice(converted, size and size - 1)))
            except OSError as error:
                raise UserError(f"data frames: cannot write {target}: {error.strerror}") from error
            progress(name)
    return FramesSummary(samples, converter.videos, converter.frames, tuple(converter.bad))


class _Converter:
    def __init__(self, sampling: Sampling, side: int | None) -> None:
        self._sampling, self._side = sampling, side
        self.videos = self.frames = 0
        self.bad: list[str] = []

    def convert(self, shard: Shard) -> Iterator[tuple[str, Files]]:
        found = scan(shard)
        self.bad += found.damage
        for group in found.groups:
            try:
                yield group.key, self._sample(shard, group)
            except BadSample as bad:
                self.bad.append(f"{shard.name}/{group.key}: {bad}")

    def _sample(self, shard: Shard, group: Group) -> Files:
        files = {member.name: read_member(shard, group.key, member) for member in group.members}
        if "json" in files:
            try:
                body = json.loads(files["json"])
            except ValueError as error:
                raise BadSample(f".json is not JSON: {error}") from None
        else:
            videos = [name for name in files if name.lower() in VIDEO_EXTENSIONS]
            if not videos:
                return files
            texts = [{"type": "text", "text": files.pop("txt").decode("utf-8", "replace")}] if "txt" in files else []
            body = {"content": [*({"type": "video", "video": name} for name in videos), *texts]}
        used: dict[str, dict[str, Any]] = {}
        made: Files = {}
        for part in _video_parts(body):
            name = part.pop("video")
            if name not in used:
                if not isinstance(name, str) or name not in files:
                    raise BadSample(f"missing media {name!r:.80}")
                used[name], pictures = self._frames(name, files[name], len(used))
                made.update(pictures)
            part.update(used[name])
        if not used:
            return files
        kept = {name: data for name, data in files.items() if name not in used and name != "json"}
        if clash := sorted(kept.keys() & made.keys()):
            raise BadSample(f"has a file {clash[0]} of its own, as a frame would be called")
        return {"json": json.dumps(body, ensure_ascii=False).encode(), **kept, **made}

    def _frames(self, name: str, data: bytes, number: int) -> tuple[dict[str, Any], Files]:
        """The members of the video's part, and its frames."""
        try:
            facts = probe(data)
            times = facts.ticks * facts.time_base.numerator / facts.time_base.denominator
            places = self._sampling.choose(times, _GROUP, 1, lambda frames: 0)
            pictures = decode_frames(data, facts.ticks[places])
        except BadSample as bad:
            raise BadSample(f"{name}: {bad}") from None
        names = [f"v{number}_{place:05d}.jpg" for place in range(len(pictures))]
        self.videos, self.frames = self.videos + 1, self.frames + len(names)
        encoded = {name: _jpeg(picture, self._side) for name, picture in zip(names, pictures, strict=True)}
        return {"frames": names, **rhythm(times[places].tolist())}, encoded


def rhythm(seconds: list[float]) -> dict[str, Any]:
    """``fps`` where it gives these times, ``times`` and their mean ``fps`` otherwise."""
    fps = (len(seconds) - 1) / (seconds[-1] - seconds[0])
    if all(abs(time - place / fps) < _EXACT_S for place, time in enumerate(seconds)):
        return {"fps": fps}
    return {"fps": fps, "times": seconds}


def _video_parts(body: Any) -> Iterator[dict[str, Any]]:
    """The parts of a sample that name a video file; an ill-formed sample has none, and is named when it is used."""
    if not isinstance(body, Mapping):
        return
    messages = body.get("messages")
    contents = [body.get("content")]
    if isinstance(messages, list):
        contents += [message.get("content") for message in messages if isinstance(message, Mapping)]
    for content in contents:
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and part.get("type") == "video" and "video" in part and "frames" not in part:
                yield part


def _jpeg(pixels: np.ndarray, side: int | None) -> bytes:
    picture = Image.fromarray(pixels)
    if side is not None and max(picture.size) > side:
        scale = side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
