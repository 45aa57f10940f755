"""Reads document pages back: their markup with parsers of its own, their pixels by drawing the words once more."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font, LoadFlags
from PIL import Image

FACES = [
    Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    for face in ("DejaVuSans", "DejaVuSerif", "DejaVuSans-Bold")
]
Box = tuple[int, int, int, int]


@dataclass
class Item:
    """``kind``: h1, h2, p, li, img, table. A table's ``cells`` are rows of texts."""

    kind: str
    words: str = ""
    box: Box | None = None  # in thousandths
    cells: list[list[str]] | None = None


def read_html(markup: str) -> list[Item]:
    """QwenVL-HTML, which is well-formed XML here, in the order of its elements."""
    items = []
    for node in ET.fromstring(markup).iter():
        box = node.get("data-bbox")
        assert box is not None or node.tag in ("html", "body", "tr", "th", "td"), node.tag
        if node.tag in ("h1", "h2", "p", "li", "img", "table"):
            cells = [[cell.text or "" for cell in row] for row in node.iter("tr")] if node.tag == "table" else None
            left, top, right, bottom = (int(n) for n in (box or "").split())
            items.append(Item(node.tag, node.text or "", (left, top, right, bottom), cells))
    return items


def read_markdown(markup: str) -> list[Item]:
    """QwenVL-Markdown; only images and tables have a box."""
    items: list[Item] = []
    for block in re.split(r"\n\n+", markup):
        place = re.match(r"<!-- (Image|Table) \((\d+), (\d+), (\d+), (\d+)\) -->", block)
        if place:
            left, top, right, bottom = (int(n) for n in place.groups()[1:])
            cells = read_latex(block[place.end() :]) if place[1] == "Table" else None
            items.append(Item("table" if cells else "img", "", (left, top, right, bottom), cells))
        elif heading := re.match(r"(#+) (.*)", block):
            items.append(Item(f"h{len(heading[1])}", heading[2]))
        elif re.match(r"- |1\. ", block):
            items += [Item("li", re.sub(r"^(- |\d+\. )", "", line)) for line in block.split("\n")]
        else:
            items.append(Item("p", block))
    return items


def read_latex(table: str) -> list[list[str]]:
    body = re.fullmatch(r"\s*\\begin{tabular}{\|(?:c\|)+}\n\\hline\n(.*)\n\\end{tabular}\s*", table, re.S)
    assert body is not None, table
    rows = [re.fullmatch(r"(.*) \\\\ \\hline", row) for row in body[1].split("\n")]
    columns = table.split("{tabular}{")[1].count("c|")
    cells = [[re.sub(r"\\(?=[&%$#_{}])", "", c) for c in re.split(r"(?<!\\) & ", row[1])] for row in rows if row]
    assert len(cells) == len(rows) and {len(row) for row in cells} == {columns}
    return cells


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def ink(page: np.ndarray) -> np.ndarray:
    """bool [height, width]: everything that is not the paper, whose colour is that of the corner."""
    return np.abs(page.astype(int) - page[0, 0]).max(-1) > 40


def crop(box: Box, page: np.ndarray) -> tuple[slice, slice]:
    """The pixels that lie in a box of thousandths, wholly or by the most part."""
    height, width = page.shape[:2]
    left, top, right, bottom = (round(n * s / 1000) for n, s in zip(box, (width, height) * 2, strict=True))
    return slice(top, bottom), slice(left, right)


def ink_columns(words: str, face: Path, size: float) -> np.ndarray:
    """How much ink each column of one line holds, by matplotlib's own drawing."""
    font = FT2Font(face)
    font.set_size(size, 72)
    font.set_text(words, 0.0, LoadFlags.NO_HINTING)
    font.draw_glyphs_to_bitmap(antialiased=True)
    columns = np.asarray(font.get_image()).sum(0).astype(float)
    used = np.flatnonzero(columns)
    return columns[used[0] : used[-1] + 1]


def first_words_likeness(dark: np.ndarray, words: str) -> float:
    """How well the first line of ``dark`` (bool, cut to an element's box) shows the beginning of ``words``, -1 to 1.

    The words are drawn anew, as many as the line's width holds, and the ink of each column is compared.
    """
    rows = np.flatnonzero(dark.any(1))
    ends = np.flatnonzero(~dark.any(1))
    bottom = next((end for end in ends if end > rows[0] + 6), dark.shape[0])
    columns = dark[rows[0] : bottom].sum(0).astype(float)
    used = np.flatnonzero(columns)
    columns = columns[used[0] : used[-1] + 1]
    best, split = -1.0, words.split(" ")
    for face in FACES:
        for count in range(1, len(split) + 1):
            drawn = ink_columns(" ".join(split[:count]), face, 20)
            size = len(columns) / len(drawn) * 20
            if not 9 <= size <= 28:
                continue
            known = np.interp(np.linspace(0, len(drawn) - 1, len(columns)), np.arange(len(drawn)), drawn)
            smooth = np.convolve(known, np.ones(3), "same"), np.convolve(columns, np.ones(3), "same")
            best = max(best, float(np.corrcoef(*smooth)[0, 1]))
    return best
