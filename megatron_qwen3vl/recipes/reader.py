"""The samples of built shards as they lie there, for people and checks: no tokenizer, no index, no builder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_qwen3vl.data.shards import find_shards, read_member, scan
from megatron_qwen3vl.recipes.record import Part


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
        """The images, and of each video the frames, in order."""
        found = [p for p in self.parts if p["type"] != "text"]
        return [self.media[name] for p in found for name in ([p["image"]] if p["type"] == "image" else p["frames"])]


def read_samples(path: Path) -> Iterator[ReadSample]:
    """Every sample of a folder of shards or of one tar.

    Raises:
        UserError: there are no shards.
    """
    for shard in find_shards(str(path.absolute()), path.absolute().parent):
        for group in scan(shard).groups:
            files = {member.name: read_member(shard, group.key, member) for member in group.members}
            yield ReadSample(group.key, json.loads(files.pop("json")), files)
