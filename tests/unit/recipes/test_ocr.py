"""Pictures with text say what they show: read back from the pixels and redrawn by matplotlib's own text shaping."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.ft2font import FT2Font, LoadFlags
from PIL import Image, ImageFilter, ImageOps

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes import fonts, ocr
from megatron_qwen3vl.recipes.build import build, read_recipe
from megatron_qwen3vl.recipes.reader import ReadSample, read_samples

RECIPE = Path(__file__).parents[3] / "data_recipes" / "domains" / "ocr.yaml"
SAMPLES = 100
REDRAWN = 50  # of them; it is the expensive part


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[ReadSample]:
    """Half of the samples of either split."""
    folder = tmp_path_factory.mktemp("ocr")
    tree = yaml.safe_load(RECIPE.read_text()) | {"splits": {"train": SAMPLES - 15, "held_out": 15}}
    (folder / "ocr.yaml").write_text(yaml.safe_dump(tree))
    build(folder / "ocr.yaml", folder / "out")
    return [sample for split in ("train", "held_out") for sample in read_samples(folder / "out" / split)]


def ink(sample: ReadSample) -> np.ndarray:
    """bool [height, width]: letters are dark, the ground is pale."""
    (file,) = sample.images
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).max(-1) < 128


def boxes(sample: ReadSample) -> list[tuple[str, tuple[int, int, int, int]]]:
    """(text, box in pixels) of every located text, by the words of its question and answer."""
    if "content" in sample.body:
        return []
    ((question, answer),) = sample.turns
    height, width = ink(sample).shape
    asked = re.search(r"inside the box \[(\d+), (\d+), (\d+), (\d+)\]", question)
    found = [(answer, [int(n) for n in asked.groups()])] if asked else []
    if answer.startswith("[\n{"):
        found = [(thing["text_content"], thing["bbox_2d"]) for thing in json.loads(answer)]
    scale = (width, height, width, height)
    return [(words, tuple(round(n * s / 1000) for n, s in zip(box, scale, strict=True))) for words, box in found]


def whole_text(sample: ReadSample) -> list[str] | None:
    """The lines that the sample says its picture holds, where it says them all."""
    if "content" in sample.body:
        return sample.parts[-1]["text"].split("\n")
    ((question, answer),) = sample.turns
    return answer.split("\n") if question == ocr.READ else None


def script_of(word: str) -> str | None:
    names = {unicodedata.name(c).split(" ")[0] for c in word if unicodedata.category(c)[0] == "L"}
    assert len(names) <= 1, word
    return names.pop() if names else None


def test_ten_scripts_and_more_are_read(samples: list[ReadSample]) -> None:
    texts = [part["text"] for sample in samples for part in sample.parts if part["type"] == "text"]
    letters = [{script_of(word) for word in re.findall(r"[^\s\"“”{}\[\],:]+", text)} for text in texts]
    seen = {script for found in letters for script in found if script is not None}
    assert len(seen) >= 15, seen
    assert {sample.body["domain"] for sample in samples} == {"ocr"}


def test_boxes_hold_the_ink_of_their_texts_and_no_more(samples: list[ReadSample]) -> None:
    checked = 0
    for sample in samples:
        dark, located = ink(sample), boxes(sample)
        for _, (left, top, right, bottom) in located:
            crop = dark[top:bottom, left:right]
            rows, columns = np.flatnonzero(crop.any(1)), np.flatnonzero(crop.any(0))
            slack = (rows[0], columns[0], crop.shape[0] - 1 - rows[-1], crop.shape[1] - 1 - columns[-1])
            assert max(slack) <= 3, (sample.key, slack)
            around = dark[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1]
            assert around.sum() - crop.sum() <= 0.02 * crop.sum() + 2, sample.key  # a neighbour may come close
            checked += 1
        if sample.body.get("messages") and sample.turns[0][0] in (ocr.WORDS, ocr.LINES):
            for _, (left, top, right, bottom) in located:
                dark[top:bottom, left:right] = False
            assert dark.sum() == 0, f"{sample.key}: ink outside every box"
    assert checked > 60


def tight(picture: np.ndarray) -> np.ndarray:
    """Without the empty rows and columns at its edges."""
    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@cache
def redraw(words: str, face: Path) -> np.ndarray:
    """Its ink, 0..255 uint8 [h, w], by matplotlib: its own HarfBuzz, raqm and bidirectional algorithm."""
    font = FT2Font(face)
    font.set_size(32, 72)
    font.set_text(words, 0.0, LoadFlags.NO_HINTING)
    font.draw_glyphs_to_bitmap(antialiased=True)
    return tight(np.asarray(font.get_image()))


def likeness(crop: np.ndarray, words: str) -> float:
    """The best correlation of a crop with the words redrawn in any face of their scripts, at the crop's size."""
    scripts = [s for s in fonts.SCRIPTS.values() if s.name in {script_of(w) for w in words.split()}]
    faces = {face for script in scripts or [fonts.SCRIPTS["LATIN"]] for face in fonts.faces_of(script, ())}
    if not scripts:  # a number, in whatever font
        faces = {face for script in fonts.SCRIPTS.values() for face in fonts.faces_of(script, ())}
    best, shown = -1.0, soft(Image.fromarray(crop), crop.shape)
    for face in faces:
        template = Image.fromarray(redraw(words, face))
        if not 0.7 < (template.width / template.height) / (crop.shape[1] / crop.shape[0]) < 1.4:
            continue
        best = max(best, float(np.corrcoef(soft(template, crop.shape), shown)[0, 1]))
    return best


def soft(picture: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """Resized and blurred by a pixel, flat: strokes that lie half a pixel off still meet."""
    whole = picture.convert("L").resize((shape[1], shape[0]), Image.Resampling.BOX)
    return np.asarray(ImageOps.expand(whole, 2).filter(ImageFilter.BoxBlur(1)), float).ravel()


def test_located_texts_are_what_their_boxes_show(samples: list[ReadSample]) -> None:
    right, foiled = [], []
    for sample in samples[-REDRAWN:]:
        dark, located = ink(sample), boxes(sample)
        for words, (left, top, right_edge, bottom) in located:
            crop = tight(dark[top:bottom, left:right_edge])
            right.append(likeness(crop, words))
            foiled += [likeness(crop, other) for other, _ in located if other != words]
    assert len(right) > 25
    assert np.mean(np.array(right) > 0.7) > 0.95, sorted(right)[:10]
    assert np.mean(np.array(foiled) > 0.7) < 0.05


def bands(dark: np.ndarray, count: int) -> list[np.ndarray]:
    """The picture cut at its ``count`` - 1 widest rows of nothing between ink."""
    rows = np.flatnonzero(dark.any(1))
    gaps = sorted((b - a, a, b) for a, b in pairwise(rows) if b - a > 1)
    cuts = sorted(gaps[len(gaps) - count + 1 :], key=lambda gap: gap[1]) if count > 1 else []
    edges = [rows[0], *(row for _, a, b in cuts for row in (a + 1, b)), rows[-1] + 1]
    return [dark[top:bottom] for top, bottom in zip(edges[::2], edges[1::2], strict=True)]


def test_whole_texts_are_read_line_by_line_in_order(samples: list[ReadSample]) -> None:
    alike, checked = [], 0
    for sample in samples[:REDRAWN]:
        lines = whole_text(sample)
        if lines is None:
            continue
        for band, line in zip(bands(ink(sample), len(lines)), lines, strict=True):
            alike.append(likeness(tight(band), line))
            checked += 1
    assert checked > 25
    assert np.mean(np.array(alike) > 0.5) > 0.85, sorted(alike)


def test_train_and_held_out_share_no_text() -> None:
    _, settings = read_recipe(RECIPE)
    scripts = ocr.usable_scripts(settings, ())
    texts = {
        held_out: {ocr.draw(np.random.default_rng(n), settings, scripts[:1], (), held_out).text for n in range(20)}
        for held_out in (False, True)
    }
    assert not texts[False] & texts[True]


def test_a_script_without_a_font_is_left_out_with_a_message(capsys: pytest.CaptureFixture) -> None:
    _, settings = read_recipe(RECIPE)
    some = ocr.OcrSettings(**{**vars(settings), "scripts": ("GREEK", "TIBETAN")})
    assert [script.name for script in ocr.usable_scripts(some, ())] == ["GREEK"]
    assert "TIBETAN: no font for it is installed" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of them can be drawn"):
        ocr.usable_scripts(ocr.OcrSettings(**{**vars(settings), "scripts": ("TIBETAN",)}), ())
    with pytest.raises(UserError, match="KLINGON"):
        ocr.usable_scripts(ocr.OcrSettings(**{**vars(settings), "scripts": ("KLINGON",)}), ())
