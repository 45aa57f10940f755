"""What a builder yields, and the few ways every builder writes a sample's JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Part = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One sample before it goes into a shard. ``media`` maps the names its JSON uses to the files' bytes."""

    key: str
    body: dict[str, Any]
    media: Mapping[str, bytes]

    def files(self) -> dict[str, bytes]:
        """As they stand in a shard behind ``KEY.``."""
        return {"json": json.dumps(self.body, ensure_ascii=False).encode(), **self.media}


def text(words: str) -> Part:
    return {"type": "text", "text": words}


def image(name: str) -> Part:
    return {"type": "image", "image": name}


def video(frames: Sequence[str], fps: float) -> Part:
    return {"type": "video", "frames": list(frames), "fps": fps}


def document(parts: Sequence[Part], domain: str) -> dict[str, Any]:
    return {"content": list(parts), "domain": domain}


def conversation(turns: Iterable[tuple[Sequence[Part], str]], domain: str) -> dict[str, Any]:
    """``turns``: what the user shows and asks, and the assistant's answer."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": list(question)})
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, "domain": domain}


def png(pixels: np.ndarray) -> bytes:
    """``pixels`` uint8 [height, width, 3]. Exact, for flat pictures."""
    return _encode(pixels, "PNG", compress_level=1)


def jpeg(pixels: np.ndarray) -> bytes:
    """``pixels`` uint8 [height, width, 3]. Without chroma subsampling, which would blur small shapes."""
    return _encode(pixels, "JPEG", quality=90, subsampling=0)


def _encode(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
