"""Five sources for the elastic test: pictures, conversations, video files, frame lists, and documents too long for one
pack. Small enough that the first four are used several times over, the last only once."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import yaml
from faults_data import picture, write_shard

from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.data.indexing import IndexJob, index_one
from megatron_qwen3vl.data.shards import find_shards
from megatron_qwen3vl.data.tokenizer import load_tokenizer

SEQUENCE_LENGTH = 512
NAMES = ("pictures", "dialogues", "clips", "frames", "books")
_LIMITS = {"min_pixels": 4096, "max_pixels": 8192}


def clip(number: int, frames: int = 12) -> bytes:
    """An MP4 of 64 x 64 pixels, 4 frames a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(4))
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "threads": "1"}
        for place in range(frames + number % 5):
            pixels = np.full((64, 64, 3), (number * 9 + place * 5) % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _pictures(first: int, count: int) -> list[tuple[str, dict, dict[str, bytes]]]:
    return [
        (f"{i:04d}", {"content": [{"type": "image", "image": "0.png"}, {"type": "text", "text": f"number {i * 37}"}]},
         {"0.png": picture(i)})
        for i in range(first, first + count)
    ]  # fmt: skip


def _dialogues(count: int) -> list[tuple[str, dict, dict[str, bytes]]]:
    return [
        (
            f"{i:04d}",
            {"messages": [
                {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"},
                                             {"type": "text", "text": "Which is lighter?"}]},
                {"role": "assistant", "content": f"The {('first', 'second')[i % 2]}, by {i} levels." * (1 + i % 3)},
            ]},
            {"a.png": picture(1000 + i), "b.png": picture(2000 + i, 48)},
        )
        for i in range(count)
    ]  # fmt: skip


def _videos(count: int) -> list[tuple[str, dict, dict[str, bytes]]]:
    parts = [{"type": "video", "video": "v.mp4"}, {"type": "text", "text": "It grows lighter."}]
    return [(f"{i:04d}", {"content": parts}, {"v.mp4": clip(i)}) for i in range(count)]


def _frame_lists(count: int) -> list[tuple[str, dict, dict[str, bytes]]]:
    names = [f"{n}.png" for n in range(5)]
    parts = [{"type": "video", "frames": names, "fps": 2.0}, {"type": "text", "text": "Noise, five times."}]
    return [
        (f"{i:04d}", {"content": parts}, {name: picture(3000 + 5 * i + n, 32) for n, name in enumerate(names)})
        for i in range(count)
    ]


def _books(count: int) -> list[tuple[str, dict, dict[str, bytes]]]:
    """Some fit into one pack, most do not; every third has a picture in the middle."""
    made = []
    for i in range(count):
        text = [{"type": "text", "text": f"Chapter {n} of book {i}. " * 12} for n in range(2 + i % 7)]
        if i % 3 == 0:
            text.insert(len(text) // 2, {"type": "image", "image": "0.png"})
        made.append((f"{i:04d}", {"content": text}, {"0.png": picture(5000 + i)} if i % 3 == 0 else {}))
    return made


def make_shards(folder: Path, books: int) -> None:
    """With the indexes that runs over a network need."""
    folder.mkdir(parents=True)
    write_shard(folder / "pictures-0.tar", _pictures(0, 24))
    write_shard(folder / "pictures-1.tar", _pictures(24, 16))
    write_shard(folder / "dialogues.tar", _dialogues(24))
    write_shard(folder / "clips.tar", _videos(16))
    write_shard(folder / "frames.tar", _frame_lists(16))
    write_shard(folder / "books.tar", _books(books))
    job = IndexJob(load_tokenizer(None, load_config(["validation.every=0"]).model), to=None)
    for shard in find_shards(str(folder), folder):
        assert index_one(job, shard).problem is None


def write_mixture(path: Path, base: str) -> Path:
    """``base``: the folder of the shards, or the address that serves it."""
    weights = dict(zip(NAMES, (0.2, 0.2, 0.15, 0.15, 0.3), strict=True))
    sources = []
    for name, weight in weights.items():
        tars = [f"pictures-{n}.tar" for n in range(2)] if name == "pictures" else [f"{name}.tar"]
        addresses = [f"{base}/{tar}" for tar in tars]
        sources.append({"name": name, "shards": addresses, "weight": weight, "slice": 4, **_LIMITS})
    path.write_text(yaml.safe_dump({"sources": sources}))
    return path
