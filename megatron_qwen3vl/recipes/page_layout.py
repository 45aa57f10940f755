"""A small typesetter: elements -> a page as pixels, with the box of everything that stands on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from megatron_qwen3vl.recipes.boxes import Box
from megatron_qwen3vl.recipes.fonts import SCRIPTS, faces_of, typeface
from megatron_qwen3vl.recipes.page_text import Element, Figure, Heading, Listing, Paragraph, Table

GAP = 0.7  # between two elements, in font sizes
CELL = 0.4  # around a cell's text, in font sizes
LEADING = 1.3  # from one line's top to the next one's, in font sizes


@dataclass(frozen=True)
class PageStyle:
    size: tuple[int, int]  # width, height in pixels
    columns: int
    font_size: int  # of the text, in pixels
    serif: bool
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]
    ruled: bool  # tables with all lines, or only above and below the header and at the end


@dataclass(frozen=True)
class Placed:
    """An element, the box of all of it, and the boxes of its parts in the order of reading: a list's items, a caption
    and its table, a picture and its caption; pixels around the ink."""

    element: Element
    box: Box
    parts: tuple[Box, ...]


@dataclass(frozen=True)
class Page:
    """``pixels`` uint8 [height, width, 3]; ``placed`` in the order of reading."""

    pixels: np.ndarray
    placed: tuple[Placed, ...]


def union(boxes: Sequence[Box]) -> Box:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


class _Sheet:
    """One page while it is filled, column by column. ``place`` draws nothing and gives None when there is no room."""

    def __init__(self, style: PageStyle) -> None:
        self._style = style
        self._picture = Image.new("RGB", style.size, style.paper)
        self._draw = ImageDraw.Draw(self._picture)
        self._margin = round(style.size[0] * 0.06)
        gutter = round(style.size[0] * 0.04)
        self.column_width = (style.size[0] - 2 * self._margin - (style.columns - 1) * gutter) // style.columns
        self._step = self.column_width + gutter
        self._column, self._top = 0, self._margin

    @property
    def pixels(self) -> np.ndarray:
        return np.asarray(self._picture)

    def place(self, element: Element) -> Placed | None:
        height = self._height(element)
        if self._top + height > self._style.size[1] - self._margin:
            if self._column + 1 == self._style.columns:
                return None
            self._column, self._top = self._column + 1, self._margin
            if self._top + height > self._style.size[1] - self._margin:
                return None
        left, top = self._margin + self._column * self._step, self._top
        parts = self._set(element, left, top)
        self._top = top + height + round(GAP * self._style.font_size)
        return Placed(element, union(parts), tuple(parts))

    def _font(self, scale: float = 1.0, bold: bool = False) -> ImageFont.FreeTypeFont:
        sans, sans_bold, serif, _ = faces_of(SCRIPTS["LATIN"], ())
        face = sans_bold if bold else serif if self._style.serif else sans
        return typeface(face, round(self._style.font_size * scale))

    def _fonts(self, element: Element) -> ImageFont.FreeTypeFont:
        if isinstance(element, Heading):
            return self._font(1.7 if element.level == 1 else 1.3, bold=True)
        return self._font(0.9) if isinstance(element, Table | Figure) else self._font()

    def _lines(self, words: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
        lines: list[str] = []
        for word in words.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        return lines

    def _text_height(self, words: str, font: ImageFont.FreeTypeFont, width: int) -> int:
        return round(LEADING * font.size) * len(self._lines(words, font, width))

    def _height(self, element: Element) -> int:
        font, width = self._fonts(element), self.column_width
        if isinstance(element, Heading | Paragraph):
            return self._text_height(element.words, font, width)
        if isinstance(element, Listing):
            return sum(self._text_height(item, font, width - self._indent) for item in element.items)
        caption = self._text_height(element.caption, font, width)
        if isinstance(element, Figure):
            return element.pixels.shape[0] + round(GAP * font.size) + caption
        return caption + len(element.cells) * self._row_height(font) + 2

    @property
    def _indent(self) -> int:
        return round(1.8 * self._style.font_size)

    def _row_height(self, font: ImageFont.FreeTypeFont) -> int:
        return round(LEADING * font.size + 2 * CELL * font.size)

    def _set(self, element: Element, left: int, top: int) -> list[Box]:
        font, width = self._fonts(element), self.column_width
        if isinstance(element, Heading | Paragraph):
            return [self._text(element.words, font, left, top, width)]
        if isinstance(element, Listing):
            return self._set_list(element, font, left, top)
        if isinstance(element, Table):
            caption = self._text(element.caption, font, left, top, width)
            return [
                caption,
                self._set_table(element, font, left, top + self._text_height(element.caption, font, width)),
            ]
        height, picture_width = element.pixels.shape[:2]
        x = left + (width - picture_width) // 2
        self._picture.paste(Image.fromarray(element.pixels), (x, top))
        below = top + height + round(GAP * font.size)
        return [(x, top, x + picture_width, top + height), self._text(element.caption, font, left, below, width)]

    def _text(self, words: str, font: ImageFont.FreeTypeFont, left: int, top: int, width: int) -> Box:
        boxes = []
        for number, line in enumerate(self._lines(words, font, width)):
            boxes.append(self._line(line, font, left, top + number * round(LEADING * font.size)))
        return union(boxes)

    def _line(self, line: str, font: ImageFont.FreeTypeFont, left: int, top: int) -> Box:
        self._draw.text((left, top), line, self._style.ink, font)
        x1, y1, x2, y2 = self._draw.textbbox((left, top), line, font)
        return int(x1), int(y1), int(x2), int(y2)

    def _set_list(self, element: Listing, font: ImageFont.FreeTypeFont, left: int, top: int) -> list[Box]:
        boxes = []
        for number, item in enumerate(element.items, 1):
            mark = self._line(f"{number}." if element.numbered else "•", font, left, top)
            words = self._text(item, font, left + self._indent, top, self.column_width - self._indent)
            boxes.append(union([mark, words]))
            top += self._text_height(item, font, self.column_width - self._indent)
        return boxes

    def _set_table(self, element: Table, font: ImageFont.FreeTypeFont, left: int, top: int) -> Box:
        pad, row = round(CELL * font.size), self._row_height(font)
        widths = [
            round(max(font.getlength(cells[column]) for cells in element.cells)) + 3 * pad
            for column in range(len(element.cells[0]))
        ]
        edges = [left + sum(widths[:column]) for column in range(len(widths) + 1)]
        box = (left, top, edges[-1] + 1, top + row * len(element.cells) + 1)
        for number, cells in enumerate(element.cells):
            for x, words in zip(edges, cells, strict=False):
                self._line(words, font, x + pad, top + number * row + pad)
        rows = range(len(element.cells) + 1) if self._style.ruled else (0, 1, len(element.cells))
        for number in rows:
            self._draw.line((left, top + number * row, edges[-1], top + number * row), self._style.ink)
        for x in edges if self._style.ruled else ():
            self._draw.line((x, top, x, box[3] - 1), self._style.ink)
        return box


def set_page(elements: Sequence[Element], style: PageStyle) -> Page:
    """As many of the elements as fit, from the first on; ``len(page.placed)`` of them.

    A heading is not left alone at the end of a page.
    """
    sheet, placed = _Sheet(style), list[Placed]()
    for element in elements:
        done = sheet.place(element)
        if done is None:
            break
        placed.append(done)
    if 1 < len(placed) < len(elements) and isinstance(placed[-1].element, Heading):
        return set_page(elements[: len(placed) - 1], style)
    return Page(sheet.pixels, tuple(placed))


def column_width(style: PageStyle) -> int:
    """Pixels that a figure may be wide."""
    return _Sheet(style).column_width
