"""Strings of real handwritten digits (scikit-learn's, 8 x 8 pixels each) at a random place and size on a canvas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from megatron_qwen3vl.recipes.grammar import READ_DIGITS, digits_sentence
from megatron_qwen3vl.recipes.photos import PHOTOS, load_photo, random_crop
from megatron_qwen3vl.recipes.record import Record, conversation, document, image, jpeg, png, text

ADVANCE = 0.85  # from one digit's left edge to the next one's, in digit heights: the 8 x 8 scans have margins
DOMAIN = "ocr"


@dataclass(frozen=True)
class Kind:
    """One kind of picture. Large digits on small canvases are easy: without them a small model finds nothing."""

    length: int  # digits in the string
    canvas: tuple[int, int]  # width, height in pixels
    size: tuple[int, int]  # smallest and largest height of a digit in pixels
    share: float  # of all pictures; the shares need not add up to one


@dataclass(frozen=True)
class DigitSettings:
    kinds: tuple[Kind, ...]
    photo_share: float  # share of pictures whose background is a darkened photograph
    conversation_share: float
    sentence_share: float  # of the documents, how many say more than the bare digits


@dataclass(frozen=True)
class Glyphs:
    """Handwritten digits: ink 0..1 float32 [count, 8, 8], and what each one says."""

    images: np.ndarray
    labels: np.ndarray  # int [count]
    index: np.ndarray  # int [count]: the row in scikit-learn's set


@dataclass(frozen=True)
class DigitPicture:
    pixels: np.ndarray  # uint8 [height, width, 3]
    digits: str
    glyphs: tuple[int, ...]  # rows in scikit-learn's set
    box: tuple[int, int, int, int]  # left, top, right, bottom
    over_photo: bool


@cache
def load_glyphs(held_out: bool) -> Glyphs:
    """Every fifth handwritten digit is held out: no training picture shows it."""
    from sklearn.datasets import load_digits

    data = load_digits()
    index = np.arange(len(data.target))
    index = index[(index % 5 == 4) == held_out]
    return Glyphs(data.images[index].astype(np.float32) / 16, data.target[index], index)


def string_width(length: int, size: int) -> int:
    """Pixels from the first digit's left edge to the last one's right edge."""
    return round((length - 1) * ADVANCE * size) + size


def draw_string(
    canvas: np.ndarray, glyphs: Sequence[np.ndarray], left: int, top: int, size: int, colour: np.ndarray
) -> np.ndarray:
    """Blends ``glyphs`` (each float32 [8, 8]), ``size`` pixels high, into a copy of ``canvas`` uint8 [h, w, 3]."""
    ink = np.zeros(canvas.shape[:2], np.float32)
    for place, glyph in enumerate(glyphs):
        scan = Image.fromarray((glyph * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        x = left + round(place * ADVANCE * size)
        area = ink[top : top + size, x : x + size]
        np.maximum(area, np.asarray(scan, np.float32) / 255, out=area)
    ink = np.minimum(ink * 1.3, 1.0)[..., None]
    return (canvas * (1 - ink) + colour * ink).round().astype(np.uint8)


def draw(rng: np.random.Generator, kind: Kind, photo_share: float, held_out: bool) -> DigitPicture:
    """Bright digits on a dark canvas or, with probability ``photo_share``, on a darkened photograph."""
    width, height = kind.canvas
    length = kind.length
    glyphs = load_glyphs(held_out)
    over_photo = bool(rng.random() < photo_share)
    if over_photo:
        photo = load_photo(str(rng.choice(list(PHOTOS))), held_out)
        canvas = (random_crop(rng, photo, width, height) * 0.35).astype(np.uint8)
    else:
        canvas = np.full((height, width, 3), rng.integers(0, 50), np.uint8)
    room = int(width / (1 + (length - 1) * ADVANCE))
    size = min(int(rng.integers(kind.size[0], kind.size[1] + 1)), room, height)
    left = int(rng.integers(0, width - string_width(length, size) + 1))
    top = int(rng.integers(0, height - size + 1))
    picked = rng.integers(0, len(glyphs.labels), length)
    colour = rng.integers(190, 256, 3).astype(np.float32)
    return DigitPicture(
        pixels=draw_string(canvas, list(glyphs.images[picked]), left, top, size, colour),
        digits="".join(str(d) for d in glyphs.labels[picked]),
        glyphs=tuple(int(i) for i in glyphs.index[picked]),
        box=(left, top, left + string_width(length, size), top + size),
        over_photo=over_photo,
    )


def build(settings: DigitSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    shares = np.array([kind.share for kind in settings.kinds])
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        kind = settings.kinds[int(rng.choice(len(shares), p=shares / shares.sum()))]
        picture = draw(rng, kind, settings.photo_share, held_out)
        name, file = ("0.jpg", jpeg(picture.pixels)) if picture.over_photo else ("0.png", png(picture.pixels))
        if rng.random() < settings.conversation_share:
            body = conversation([([image(name), text(READ_DIGITS)], picture.digits)], DOMAIN)
        elif rng.random() < settings.sentence_share:
            body = document([image(name), text(digits_sentence(picture.digits))], DOMAIN)
        else:
            body = document([image(name), text(picture.digits)], DOMAIN)
        yield Record(f"{number:06d}", body, {name: file})
