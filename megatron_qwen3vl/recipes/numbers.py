"""Pictures of a printed number among words, at random places, to be read: what the demonstration must learn to see.

Numbers of three digits and more belong to one split by their digits: no held-out number is ever drawn for training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from megatron_qwen3vl.recipes.fonts import typeface
from megatron_qwen3vl.recipes.materials import package_folder
from megatron_qwen3vl.recipes.record import Record, conversation, document, image, png, text
from megatron_qwen3vl.recipes.splits import belongs

DOMAIN = "ocr"
READ_NUMBER = "Read the number."
GAP = 2  # pixels between texts
TRIES = 30  # random places for one text before the page is begun anew
WORDS = (
    "room", "page", "total", "floor", "seat", "line", "table", "gate", "bus", "track", "item", "note", "order",
    "level", "route", "phone", "shop", "price", "unit", "door", "lot", "row", "box", "card", "date", "name", "street",
    "house", "north", "south",
)
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Page:
    """One kind of picture. Ranges hold their ends; sizes are the fonts', in pixels."""

    canvas: tuple[int, int]  # width, height in pixels
    digits: tuple[int, int]
    size: tuple[int, int]
    words: tuple[int, int]
    word_size: tuple[int, int]
    share: float  # of all pictures; the shares need not add up to one


@dataclass(frozen=True)
class NumberSettings:
    pages: tuple[Page, ...]
    faces: tuple[str, ...]  # matplotlib's
    conversation_share: float  # the others are documents: the picture, then the bare number


@dataclass(frozen=True)
class NumberPicture:
    pixels: np.ndarray  # uint8 [height, width, 3]
    number: str
    words: tuple[str, ...]
    boxes: tuple[Box, ...]  # of the number, then of each word: around their ink


def draw(rng: np.random.Generator, page: Page, faces: tuple[str, ...], held_out: bool) -> NumberPicture:
    """Bright texts on a ground of middle grey, which is zero to the model: what differs from zero is something to see.

    On a dark ground each of a patch's values pushes the first layer the same way, at every step; texts brighter or
    darker than their ground by chance cancel out in any linear feature. Both held learning up (docs/demonstration.md).
    """
    number = _number(rng, page, held_out)
    words = tuple(WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(page.words[0], page.words[1] + 1)))
    sizes = (page.size, *[page.word_size] * len(words))
    while True:
        masks = [
            _mask(written, faces[int(rng.integers(len(faces)))], int(rng.integers(low, high + 1)))
            for written, (low, high) in zip((number, *words), sizes, strict=True)
        ]
        boxes = _places(rng, masks, page.canvas)
        if boxes is not None:
            break
    width, height = page.canvas
    pixels = np.full((height, width, 3), rng.integers(118, 138), np.float32)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        area = pixels[top:bottom, left:right]
        area += (rng.integers(215, 256, 3) - area) * mask[..., None]
    return NumberPicture(pixels.round().astype(np.uint8), number, words, tuple(boxes))


def build(settings: NumberSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    shares = np.array([page.share for page in settings.pages])
    for index in range(count):
        rng = np.random.default_rng([seed, held_out, index])
        page = settings.pages[int(rng.choice(len(shares), p=shares / shares.sum()))]
        picture = draw(rng, page, settings.faces, held_out)
        if rng.random() < settings.conversation_share:
            body = conversation([([image("0.png"), text(READ_NUMBER)], picture.number)], DOMAIN)
        else:
            body = document([image("0.png"), text(picture.number)], DOMAIN)
        yield Record(f"{index:06d}", body, {"0.png": png(picture.pixels)})


def _number(rng: np.random.Generator, page: Page, held_out: bool) -> str:
    length = int(rng.integers(page.digits[0], page.digits[1] + 1))
    while True:
        number = "".join(map(str, rng.integers(0, 10, length)))
        if length < 3 or belongs(f"number {number}", held_out):
            return number


def _places(rng: np.random.Generator, masks: list[np.ndarray], canvas: tuple[int, int]) -> list[Box] | None:
    """A free place for each mask, in their order; None where one finds none."""
    width, height = canvas
    taken = np.zeros((height, width), bool)
    boxes: list[Box] = []
    for mask in masks:
        rows, columns = mask.shape
        if rows > height or columns > width:
            return None
        for _ in range(TRIES):
            top, left = int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1))
            near = taken[max(0, top - GAP) : top + rows + GAP, max(0, left - GAP) : left + columns + GAP]
            if not near.any():
                break
        else:
            return None
        taken[top : top + rows, left : left + columns] = True
        boxes.append((left, top, left + columns, top + rows))
    return boxes


@lru_cache(maxsize=20_000)
def _mask(written: str, face: str, size: int) -> np.ndarray:
    """float32 [height, width], 0 to 1: the ink of a text, cut to its edges."""
    folder = package_folder("matplotlib")
    assert folder is not None, "matplotlib is one of this package's requirements"
    font = typeface(folder / "mpl-data" / "fonts" / "ttf" / f"{face}.ttf", size)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(written))
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), written, 255, font)
    return np.asarray(mask, np.float32) / 255
