"""Pictures of a number among words, at random places of a screen of characters, to be read: what the demonstration must
learn to see.

As on a terminal each character fills one cell of a grid. A cell of 16 pixels is a patch of the ViT. Where characters
lie across the borders of patches, a small model needs far more samples (docs/demonstration.md).

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
TRIES = 30  # random places for one text before the page is begun anew
WORDS = (
    "room",
    "page",
    "total",
    "floor",
    "seat",
    "line",
    "table",
    "gate",
    "bus",
    "track",
    "item",
    "note",
    "order",
    "level",
    "route",
    "phone",
    "shop",
    "price",
    "unit",
    "door",
    "lot",
    "row",
    "box",
    "card",
    "date",
    "name",
    "street",
    "house",
    "north",
    "south",
)
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Page:
    """One kind of picture. Ranges hold their ends."""

    cells: tuple[int, int]  # columns, rows
    digits: tuple[int, int]
    words: tuple[int, int]
    share: float  # of all pictures; the shares need not add up to one


@dataclass(frozen=True)
class NumberSettings:
    pages: tuple[Page, ...]
    cell: int  # pixels
    size: tuple[int, int]  # the font's, in pixels; a range with its ends
    jitter: int  # pixels by which a text may stand off the middle of its cells
    faces: tuple[str, ...]  # matplotlib's
    conversation_share: float  # the others are documents: the picture, then the bare number


@dataclass(frozen=True)
class NumberPicture:
    pixels: np.ndarray  # uint8 [height, width, 3]
    number: str
    words: tuple[str, ...]
    boxes: tuple[Box, ...]  # of the number, then of each word: their cells


def draw(rng: np.random.Generator, page: Page, settings: NumberSettings, held_out: bool) -> NumberPicture:
    """Bright texts on a ground of middle grey, which is zero to the model: what differs from zero is something to see.

    On a dark ground each of a patch's values pushes the first layer the same way, at every step; texts brighter or
    darker than their ground by chance cancel out in any linear feature. Both held learning up (docs/demonstration.md).
    """
    number = _number(rng, page, held_out)
    words = tuple(WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(page.words[0], page.words[1] + 1)))
    boxes = None
    while boxes is None:
        boxes = _places(rng, (number, *words), page.cells, settings.cell)
    masks = [_text_mask(rng, written, settings) for written in (number, *words)]
    columns, rows = page.cells
    pixels = np.full((rows * settings.cell, columns * settings.cell, 3), rng.integers(118, 138), np.float32)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        area = pixels[top:bottom, left:right]
        area += (rng.integers(215, 256, 3) - area) * mask[..., None]
    return NumberPicture(pixels.round().astype(np.uint8), number, words, tuple(boxes))


def build(settings: NumberSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    shares = np.array([page.share for page in settings.pages])
    for index in range(count):
        rng = np.random.default_rng([seed, held_out, index])
        page = settings.pages[int(rng.choice(len(shares), p=shares / shares.sum()))]
        picture = draw(rng, page, settings, held_out)
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


def _places(rng: np.random.Generator, texts: tuple[str, ...], cells: tuple[int, int], cell: int) -> list[Box] | None:
    """Free cells for each text, in their order, with one free cell beside it; None where one finds none."""
    columns, rows = cells
    taken = np.zeros((rows, columns), bool)
    boxes: list[Box] = []
    for written in texts:
        for _ in range(TRIES):
            row, column = int(rng.integers(0, rows)), int(rng.integers(0, columns - len(written) + 1))
            end = column + len(written)
            if not taken[row, max(0, column - 1) : end + 1].any():
                break
        else:
            return None
        taken[row, column:end] = True
        boxes.append((column * cell, row * cell, end * cell, (row + 1) * cell))
    return boxes


def _text_mask(rng: np.random.Generator, written: str, settings: NumberSettings) -> np.ndarray:
    face = settings.faces[int(rng.integers(len(settings.faces)))]
    size = int(rng.integers(settings.size[0], settings.size[1] + 1))
    right, down = (int(step) for step in rng.integers(-settings.jitter, settings.jitter + 1, 2))
    return np.hstack([_mask(character, face, size, settings.cell, right, down) for character in written])


@lru_cache(maxsize=20_000)
def _mask(character: str, face: str, size: int, cell: int, right: int, down: int) -> np.ndarray:
    """float32 [cell, cell], 0 to 1: the ink of a character, its baseline at 5/6 of the height."""
    folder = package_folder("matplotlib")
    assert folder is not None, "matplotlib is one of this package's requirements"
    font = typeface(folder / "mpl-data" / "fonts" / "ttf" / f"{face}.ttf", size)
    mask = Image.new("L", (cell, cell))
    ImageDraw.Draw(mask).text((cell / 2 + right, cell * 5 / 6 + down), character, 255, font, anchor="ms")
    return np.asarray(mask, np.float32) / 255
