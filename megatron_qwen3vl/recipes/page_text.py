"""What document pages are made of: headings, paragraphs, lists, tables and figures, before they have a place.

Words are docstrings of Python's standard library, which is English prose of two licences that allow it (PSF); tables
hold made-up figures, and figures are cut from photographs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from megatron_qwen3vl.recipes.photos import PHOTOS, load_photo, random_crop
from megatron_qwen3vl.recipes.plain_text import MINIMUM, in_held_out, stdlib_docstrings

THINGS = ("Apples", "Bread", "Coffee", "Flour", "Honey", "Lamps", "Milk", "Nails", "Paper", "Pears", "Rice", "Salt",
          "Screws", "Soap", "Sugar", "Tea", "Timber", "Wool")  # fmt: skip
COLUMNS = ("2019", "2020", "2021", "2022", "Stock", "Sold", "Price", "Weight", "Orders", "Returns")


@dataclass(frozen=True)
class Heading:
    words: str
    level: int  # 1 or 2


@dataclass(frozen=True)
class Paragraph:
    words: str


@dataclass(frozen=True)
class Listing:
    items: tuple[str, ...]
    numbered: bool


@dataclass(frozen=True)
class Table:
    """``cells``: rows of texts, the header first. ``caption`` stands above it."""

    caption: str
    cells: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """``pixels`` uint8 [height, width, 3]; ``caption`` stands below it."""

    pixels: np.ndarray
    caption: str


Element = Heading | Paragraph | Listing | Table | Figure


@cache
def prose(held_out: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(name, sentences) of every docstring of the split that is plain prose."""
    found = []
    for docstring in stdlib_docstrings(MINIMUM):
        words = " ".join(docstring.text.split())
        plain = words.isascii() and not re.search(r"[<>`|{}\\\[\]_*#&$%~^]|--|>>>", words)
        sentences = tuple(s for s in re.split(r"(?<=[.!?]) +(?=[A-Z])", words) if 20 <= len(s) <= 220)
        if plain and sentences and docstring.name and in_held_out(docstring.module) == held_out:
            found.append((docstring.name, sentences))
    return tuple(found)


def title(rng: np.random.Generator, held_out: bool, level: int) -> Heading:
    """Such as ``Message and Policy``: the names of one or two things of the library."""
    known = prose(held_out)
    names = [re.sub(r"[_\W]+", " ", known[int(rng.integers(len(known)))][0]).strip() for _ in range(2)]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", " and ".join(dict.fromkeys(names)))
    return Heading(words[:1].upper() + words[1:], level)


def _sentence(rng: np.random.Generator, held_out: bool) -> str:
    known = prose(held_out)
    sentences = known[int(rng.integers(len(known)))][1]
    return sentences[int(rng.integers(len(sentences)))]


def paragraph(rng: np.random.Generator, held_out: bool) -> Paragraph:
    return Paragraph(" ".join(_sentence(rng, held_out) for _ in range(int(rng.integers(1, 5)))))


def listing(rng: np.random.Generator, held_out: bool) -> Listing:
    items = tuple(_sentence(rng, held_out) for _ in range(int(rng.integers(2, 5))))
    return Listing(items, bool(rng.random() < 0.5))


def table(rng: np.random.Generator, number: int, most_columns: int) -> Table:
    """``Table N. ...`` of 2 to 5 things and 2 to ``most_columns`` columns of numbers."""
    things = [THINGS[int(i)] for i in rng.choice(len(THINGS), int(rng.integers(2, 6)), replace=False)]
    picked = rng.choice(len(COLUMNS), int(rng.integers(2, most_columns + 1)), replace=False)
    columns = [COLUMNS[int(i)] for i in picked]
    rows = [(thing, *(str(int(rng.integers(1, 1000))) for _ in columns)) for thing in things]
    return Table(f"Table {number}. {' and '.join(columns)} of each article.", (("Article", *columns), *rows))


def figure(rng: np.random.Generator, number: int, held_out: bool, width: int) -> Figure:
    name = str(rng.choice(list(PHOTOS)))
    height = int(width * rng.uniform(0.4, 0.75))
    pixels = random_crop(rng, load_photo(name, held_out), width, height)
    return Figure(pixels, f"Figure {number}. A picture of {PHOTOS[name]}.")
