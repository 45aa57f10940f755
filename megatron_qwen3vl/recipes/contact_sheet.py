"""A picture of what a built domain looks like (``data sheet``): some samples with their boxes, points and texts."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes.boxes import SCALE
from megatron_qwen3vl.recipes.fonts import font_for, typeface
from megatron_qwen3vl.recipes.reader import ReadSample, read_samples

COLUMNS, ROWS = 4, 3
TILE, PICTURE, TEXT_LINES, LINE, GAP = 260, 200, 9, 13, 8  # pixels, but TEXT_LINES
CONSIDERED = 240  # samples from the start among which those shown are spread
LARGEST, COLOURS = 150_000, 96  # bytes and colours of the file
CELLS = (1, 4, 9)  # pictures that are shown of a sample with several
MARK, GROUND = (220, 30, 90), (225, 228, 232)

_NUMBER = r"\s*(-?\d+)\s*"
_BOXES = (
    re.compile(rf'"bbox_2d": *\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]'),
    re.compile(r'data-bbox="(\d+) (\d+) (\d+) (\d+)"'),
    re.compile(r"<!-- (?:Image|Table) \((\d+), (\d+), (\d+), (\d+)\) -->"),
)
_POINT = re.compile(rf'"point_2d": *\[{_NUMBER},{_NUMBER}\]')


def write_sheet(shards: Path, out: Path) -> int:
    """Draw a sheet of at most COLUMNS x ROWS samples into the PNG file ``out``, at most LARGEST bytes.

    Returns:
        The number of samples shown.

    Raises:
        UserError: no shards there, or the file cannot be written.
    """
    samples = list(islice(read_samples(shards), CONSIDERED))
    count = min(len(samples), COLUMNS * ROWS)
    shown = [samples[i * len(samples) // count] for i in range(count)]
    tiles = [_tile(sample) for sample in shown]
    height = max(tile.height for tile in tiles)
    sheet = Image.new("RGB", (COLUMNS * (TILE + GAP) + GAP, -(-count // COLUMNS) * (height + GAP) + GAP), GROUND)
    for number, tile in enumerate(tiles):
        whole = Image.new("RGB", (TILE, height), "white")
        whole.paste(tile)
        sheet.paste(whole, (GAP + number % COLUMNS * (TILE + GAP), GAP + number // COLUMNS * (height + GAP)))
    try:
        out.write_bytes(_small_png(sheet))
    except OSError as error:
        raise UserError(f"data sheet: cannot write {out}: {error.strerror}") from error
    return count


def _small_png(sheet: Image.Image) -> bytes:
    """As large as the bytes allow. Rare colours are kept: a small figure's colour is what its sample speaks of."""
    for scale in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        small = sheet.resize((round(sheet.width * scale), round(sheet.height * scale)), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        flat = small.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        flat.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= LARGEST:
            break
    return buffer.getvalue()


def _tile(sample: ReadSample) -> Image.Image:
    words = "\n".join(part["text"] for part in sample.parts if part["type"] == "text")
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in sample.images[: CELLS[-1]]]
    if len(sample.images) == 1:
        _mark(pictures[0], words)
    top = PICTURE + 4 if pictures else 4
    lines = _wrap(words, TEXT_LINES if pictures else TEXT_LINES + PICTURE // LINE)
    tile = Image.new("RGB", (TILE, top + len(lines) * LINE + GAP), "white")
    _place(tile, pictures)
    for number, line in enumerate(lines):
        ImageDraw.Draw(tile).text((4, top + number * LINE), line, (20, 20, 30), typeface(font_for(line), 10))
    return tile


def _place(tile: Image.Image, pictures: Sequence[Image.Image]) -> None:
    if not pictures:
        return
    side = next(n for n, cells in enumerate(CELLS, 1) if len(pictures) <= cells)
    width, height = TILE // side, PICTURE // side
    for number, picture in enumerate(pictures):
        scale = min(width / picture.width, height / picture.height)
        size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
        left, top = number % side * width, number // side * height
        tile.paste(
            picture.resize(size, Image.Resampling.LANCZOS),
            (left + (width - size[0]) // 2, top + (height - size[1]) // 2),
        )


def _mark(picture: Image.Image, words: str) -> None:
    draw = ImageDraw.Draw(picture)
    line = max(1, round(picture.width / TILE))
    for pattern in _BOXES:
        for found in pattern.findall(words):
            left, top, right, bottom = (int(n) for n in found)
            if left <= right and top <= bottom:
                corners = (left * picture.width / SCALE, top * picture.height / SCALE)
                draw.rectangle(
                    (*corners, right * picture.width / SCALE, bottom * picture.height / SCALE), None, MARK, line
                )
    for found in _POINT.findall(words):
        x, y = int(found[0]) * picture.width / SCALE, int(found[1]) * picture.height / SCALE
        draw.ellipse((x - 3 * line, y - 3 * line, x + 3 * line, y + 3 * line), MARK, "white")


def _wrap(words: str, most: int) -> list[str]:
    """The beginning of the text in lines that fit; an ellipsis stands for what is left out."""
    lines: list[str] = []
    for line in words.splitlines():
        rest, font = line, typeface(font_for(line), 10)
        while rest and len(lines) <= most:
            fits = next((n for n in range(min(len(rest), 70), 0, -1) if font.getlength(rest[:n]) < TILE - 8), 1)
            space = rest.rfind(" ", 0, fits)
            cut = space if fits < len(rest) and space > fits // 2 else fits
            lines.append(rest[:cut])
            rest = rest[cut:].lstrip()
    return lines if len(lines) <= most else [*lines[: most - 1], "…"]
