"""The samples of built shards as they lie there, for people and checks: no tokenizer, no index, no builder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_qwen3vl.data.sampling import spread
from megatron_qwen3vl.data.shards import find_shards, read_member, scan
from megatron_qwen3vl.data.video import decode_frames, probe
from megatron_qwen3vl.recipes.record import Part, png

SHOWN = 9  # frames of a video file, evenly spread


@dataclass(frozen=True)
class ReadSample:
    """``body`` is the sample's JSON; ``media`` its other files by the names that the JSON uses."""

    key: str
    body: dict[str, Any]
    media: dict[str, bytes]

    @property
    def parts(self) -> list[Part]:
        """Texts, images and videos in the order in which the model meets them."""
        if "content" in self.body:
            return list(self.body["content"])
        contents = [message["content"] for message in self.body["messages"]]
        return [p for c in contents for p in ([{"type": "text", "text": c}] if isinstance(c, str) else c)]

    @property
    def turns(self) -> list[tuple[str, str]]:
        """(question, answer) of a conversation; the question's texts are joined by a newline, its media left out."""
        messages = self.body["messages"]
        return [
            ("\n".join(p["text"] for p in ask["content"] if p["type"] == "text"), answer["content"])
            for ask, answer in zip(messages[::2], messages[1::2], strict=True)
        ]

    @property
    def images(self) -> list[bytes]:
        """The images, of each frame list the frames, and of each video file SHOWN frames, in order."""
        found: list[bytes] = []
        for part in self.parts:
            if part["type"] == "image":
                found.append(self.media[part["image"]])
            elif "frames" in part:
                found += [self.media[name] for name in part["frames"]]
            elif part["type"] == "video":
                data = self.media[part["video"]]
                ticks = probe(data).ticks
                found += [png(frame) for frame in decode_frames(data, ticks[spread(ticks, SHOWN)])]
        return found


def read_samples(path: Path) -> Iterator[ReadSample]:
    """Every sample of a folder of shards or of one tar.

    Raises:
        UserError: there are no shards.
    """
    for shard in find_shards(str(path.absolute()), path.absolute().parent):
        for group in scan(shard).groups:
            files = {member.name: read_member(shard, group.key, member) for member in group.members}
            yield ReadSample(group.key, json.loads(files.pop("json")), files)
