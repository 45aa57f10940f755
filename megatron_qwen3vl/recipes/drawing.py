"""A drawing as a list of rectangles, lines, polygons and words: drawn by Pillow, written as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT_SIZE = 10


@dataclass(frozen=True)
class Rectangle:
    left: int
    top: int
    width: int
    height: int
    fill: str

    def draw(self, on: ImageDraw.ImageDraw) -> None:
        on.rectangle((self.left, self.top, self.left + self.width - 1, self.top + self.height - 1), self.fill)

    def svg(self) -> str:
        return f'<rect x="{self.left}" y="{self.top}" width="{self.width}" height="{self.height}" fill="{self.fill}"/>'


@dataclass(frozen=True)
class Polyline:
    points: tuple[tuple[int, int], ...]
    stroke: str
    width: int

    def draw(self, on: ImageDraw.ImageDraw) -> None:
        on.line(self.points, self.stroke, self.width)

    def svg(self) -> str:
        style = f'fill="none" stroke="{self.stroke}" stroke-width="{self.width}"'
        return f'<polyline points="{_joined(self.points)}" {style}/>'


@dataclass(frozen=True)
class Polygon:
    points: tuple[tuple[int, int], ...]
    fill: str

    def draw(self, on: ImageDraw.ImageDraw) -> None:
        on.polygon(self.points, self.fill)

    def svg(self) -> str:
        return f'<polygon points="{_joined(self.points)}" fill="{self.fill}"/>'


@dataclass(frozen=True)
class Words:
    """``x``, ``y``: the left or middle of the text at its middle height."""

    x: int
    y: int
    text: str
    fill: str
    centred: bool

    def draw(self, on: ImageDraw.ImageDraw) -> None:
        font = ImageFont.load_default(FONT_SIZE)
        left = self.x - round(on.textlength(self.text, font) / 2) if self.centred else self.x
        on.text((left, self.y), self.text, self.fill, font, anchor="lm")

    def svg(self) -> str:
        anchor = ' text-anchor="middle"' if self.centred else ""
        return (
            f'<text x="{self.x}" y="{self.y}" font-size="{FONT_SIZE}" dominant-baseline="central" '
            f'fill="{self.fill}"{anchor}>{escape(self.text)}</text>'
        )


Mark = Rectangle | Polyline | Polygon | Words


def _joined(points: Sequence[tuple[int, int]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def text_width(words: str) -> int:
    """Pixels."""
    return int(np.ceil(ImageFont.load_default(FONT_SIZE).getlength(words)))


def draw_marks(canvas: tuple[int, int], marks: Sequence[Mark]) -> np.ndarray:
    """uint8 [height, width, 3] on white."""
    picture = Image.new("RGB", canvas, "white")
    on = ImageDraw.Draw(picture)
    for mark in marks:
        mark.draw(on)
    return np.asarray(picture)


def svg_of(canvas: tuple[int, int], marks: Sequence[Mark]) -> str:
    """One element a line."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{canvas[0]}" height="{canvas[1]}">'
    return "\n".join([head, *(mark.svg() for mark in marks), "</svg>"])
