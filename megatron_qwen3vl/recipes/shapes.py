"""Coloured shapes and digits in the cells of a picture's 3 x 3 grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_qwen3vl.recipes.digits import draw_string, load_glyphs
from megatron_qwen3vl.recipes.grammar import COLOURS, SHAPES


@dataclass(frozen=True)
class Figure:
    """``name`` as captions say it (``red square``, ``digit 7``); ``row`` and ``column`` of the grid, 0 to 2."""

    name: str
    row: int
    column: int


def shape_mask(shape: str, size: int) -> np.ndarray:
    """bool [size, size]: where the shape is."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = axis[:, None], axis[None, :]
    if shape == "square":
        return np.ones((size, size), bool)
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "triangle":
        return np.abs(x) <= (y + 1) / 2
    if shape == "cross":
        return (np.abs(x) <= 0.34) | (np.abs(y) <= 0.34)
    raise ValueError(f"no shape named {shape}; there are {SHAPES}")


def paint(pixels: np.ndarray, mask: np.ndarray, left: int, top: int, colour: tuple[int, int, int]) -> None:
    """Colours ``mask`` [size, size] into ``pixels`` uint8 [height, width, 3] in place."""
    pixels[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = colour


def draw_figures(
    rng: np.random.Generator, pixels: np.ndarray, count: int, held_out: bool
) -> tuple[np.ndarray, tuple[Figure, ...]]:
    """A copy of ``pixels`` uint8 [height, width, 3] with ``count`` figures of different names in different cells."""
    pixels = pixels.copy()
    height, width = pixels.shape[0] // 3, pixels.shape[1] // 3
    cells = rng.permutation(9)[:count]
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES] + ["digit"] * 6
    figures = []
    for cell, pick in zip(cells, rng.permutation(len(names))[:count], strict=True):
        row, column = divmod(int(cell), 3)
        side = min(height, width)
        size = int(rng.integers(side * 5 // 8, side + 1))
        left = column * width + int(rng.integers(0, width - size + 1))
        top = row * height + int(rng.integers(0, height - size + 1))
        name = names[pick]
        if name == "digit":
            glyphs = load_glyphs(held_out)
            index = int(rng.integers(0, len(glyphs.labels)))
            area = pixels[top : top + size, left : left + size] // 3
            white = np.full(3, 255, np.float32)
            pixels[top : top + size, left : left + size] = draw_string(area, [glyphs.images[index]], 0, 0, size, white)
            name = f"digit {glyphs.labels[index]}"
        else:
            colour, shape = name.split()
            paint(pixels, shape_mask(shape, size), left, top, COLOURS[colour])
        figures.append(Figure(name, row, column))
    return pixels, tuple(figures)
