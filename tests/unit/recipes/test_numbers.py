"""Printed numbers say what their pictures show: read back by glyphs that the builder did not draw."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from megatron_qwen3vl.recipes import numbers
from megatron_qwen3vl.recipes.build import read_recipe

DOMAINS = Path(__file__).parents[3] / "data_recipes" / "domains"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def shrink(ink: np.ndarray) -> np.ndarray:
    """float [16, 12], 0 to 1: the ink of one glyph, cut to its edges."""
    rows, columns = np.flatnonzero(ink.max(1) > 0.3), np.flatnonzero(ink.max(0) > 0.3)
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray((cut * 255).astype(np.uint8)).resize((12, 16))) / 255


@cache
def known() -> list[tuple[str, np.ndarray]]:
    glyphs = []
    for face in ("DejaVuSansMono-Bold",):
        for digit in "0123456789":
            canvas = Image.new("L", (60, 60))
            ImageDraw.Draw(canvas).text((10, 5), digit, 255, ImageFont.truetype(FONTS / f"{face}.ttf", 40))
            glyphs.append((digit, shrink(np.asarray(canvas) / 255)))
    return glyphs


def read(picture: numbers.NumberPicture) -> str | None:
    """The number by its nearest glyphs; None where two of its digits touch."""
    left, top, right, bottom = picture.boxes[0]
    area = picture.pixels[top:bottom, left:right].astype(float).max(-1)
    ink = (area - picture.pixels.min()) / max(area.max() - picture.pixels.min(), 1)
    filled = np.append(ink.max(0) > 0.3, False)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], filled]).astype(int)))
    if len(edges) != 2 * len(picture.number):
        return None
    pieces = [shrink(ink[:, a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return "".join(min(known(), key=lambda glyph: float(((glyph[1] - piece) ** 2).sum()))[0] for piece in pieces)


@pytest.mark.parametrize("domain", ["numbers", "numbers_easy"])
def test_pictures_show_their_numbers(domain: str) -> None:
    _, settings = read_recipe(DOMAINS / f"{domain}.yaml")
    pages = [page for page in settings.pages for _ in range(100)]
    rngs = [np.random.default_rng(seed) for seed in range(len(pages))]
    pictures = [numbers.draw(rng, page, settings, False) for rng, page in zip(rngs, pages, strict=True)]
    answers = [(read(picture), picture.number) for picture in pictures]
    legible = [(said, number) for said, number in answers if said is not None]
    assert len(legible) >= 0.8 * len(answers)
    assert np.mean([said == number for said, number in legible]) >= 0.97
    for picture in pictures:
        marked = np.zeros(picture.pixels.shape[:2], bool)
        for left, top, right, bottom in picture.boxes:
            assert not marked[top:bottom, left:right].any(), "texts overlap"
            marked[top:bottom, left:right] = True
        ground = picture.pixels[~marked]
        assert (ground == ground[0]).all(), "ink outside the boxes"
        assert len(picture.boxes) == 1 + len(picture.words)


def test_samples_say_the_number_that_the_picture_was_drawn_with() -> None:
    _, settings = read_recipe(DOMAINS / "numbers.yaml")
    bodies = []
    for record in numbers.build(settings, 40, False, 3):
        body = record.body
        said = body["messages"][1]["content"] if "messages" in body else body["content"][1]["text"]
        pixels = np.asarray(Image.open(io.BytesIO(record.media["0.png"])))
        rng = np.random.default_rng([3, False, int(record.key)])
        rng.choice(1, p=[1.0])
        picture = numbers.draw(rng, settings.pages[0], settings, False)
        assert said == picture.number and (pixels == picture.pixels).all()
        bodies.append(body)
    assert {"messages", "content"} <= {key for body in bodies for key in body}


def test_no_held_out_number_is_drawn_for_training() -> None:
    _, settings = read_recipe(DOMAINS / "numbers.yaml")
    page = settings.pages[0]
    rngs = [np.random.default_rng(seed) for seed in range(400)]
    splits = [{numbers.draw(rng, page, settings, out).number for rng in rngs} for out in (False, True)]
    assert splits[0] and splits[1] and not splits[0] & splits[1]
