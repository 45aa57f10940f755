"""What the samples say is true: read back from the decoded pictures, without the code that drew them."""

from __future__ import annotations

import io
import re
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from megatron_qwen3vl.recipes import captions, clips, digits, plain_text
from megatron_qwen3vl.recipes.build import read_recipe
from megatron_qwen3vl.recipes.grammar import COLOURS, COLUMNS, DIRECTIONS, ROWS
from megatron_qwen3vl.recipes.photos import PHOTOS, load_photo

KIND = digits.Kind(length=3, canvas=(64, 32), size=(12, 23), share=1.0)  # as in data_recipes/domains/digits.yaml
DOMAINS = Path(__file__).parents[3] / "data_recipes" / "domains"
VIVID = ("red", "green", "blue", "yellow")  # hardly found in the photographs and films themselves


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)


def looks(picture: np.ndarray, colour: str) -> np.ndarray:
    """bool [height, width]: where the picture has the colour, JPEG's errors allowed."""
    return np.abs(picture - np.array(COLOURS[colour])).max(-1) <= 40


def said(body: dict) -> list[str]:
    """The sentences of a sample: a document's texts, or the assistant's turns."""
    if "content" in body:
        return [part["text"].strip() for part in body["content"] if part["type"] == "text"]
    return [message["content"].strip() for message in body["messages"] if message["role"] == "assistant"]


scans = cache(load_digits)


def nearest_digit(crop: np.ndarray) -> int:
    """Nearest neighbour among scikit-learn's digits of a picture's crop, float [h, w]."""
    known = scans()
    small = np.asarray(Image.fromarray(crop.astype(np.uint8)).resize((8, 8), Image.Resampling.BOX), float)
    small = (small - small.min()) / max(np.ptp(small), 1) * 16
    return int(known.target[((known.images - small) ** 2).sum((1, 2)).argmin()])


def test_digit_pictures_show_their_digits() -> None:
    right = []
    for number in range(60):
        held_out = number % 2 == 0
        picture = digits.draw(np.random.default_rng(number), KIND, 0.0, held_out)
        left, top, _, bottom = picture.box
        size = bottom - top
        for place, digit in enumerate(picture.digits):
            x = left + round(place * digits.ADVANCE * size)
            right.append(nearest_digit(picture.pixels[top:bottom, x : x + size].mean(-1)) == int(digit))
    assert np.mean(right) > 0.9


def test_digit_samples_say_what_their_picture_shows() -> None:
    filled = digits.Kind(length=1, canvas=(32, 32), size=(32, 32), share=1.0)  # the digit is the whole picture
    settings = digits.DigitSettings((filled,), photo_share=0.0, conversation_share=0.4, sentence_share=0.5)
    right, forms = [], set()
    for held_out in (False, True):
        for record in digits.build(settings, 40, held_out, seed=1):
            (sentence,) = said(record.body)
            (file,) = record.media.values()
            right.append(nearest_digit(pixels(file).mean(-1)) == int(re.sub(r"\D", "", sentence)))
            forms.add("messages" if "messages" in record.body else re.sub(r"\d", "", sentence))
    assert np.mean(right) > 0.9
    assert forms == {"messages", "", "The digits are ."}


def test_places_and_sizes_are_random() -> None:
    boxes = [digits.draw(np.random.default_rng(n), KIND, 0.0, False).box for n in range(200)]
    assert len({b[0] for b in boxes}) > 15 and len({b[1] for b in boxes}) > 12
    assert {b[3] - b[1] for b in boxes} == set(range(KIND.size[0], KIND.size[1] + 1))
    assert all(b[0] >= 0 and b[2] <= KIND.canvas[0] and b[1] >= 0 and b[3] <= KIND.canvas[1] for b in boxes)


def test_captions_name_the_colour_and_the_place() -> None:
    _, settings = read_recipe(DOMAINS / "captions.yaml")
    checked = 0
    for record in captions.build(settings, 150, held_out=False, seed=1):
        sentences = said(record.body)
        assert len(sentences) == len(record.media)
        for sentence, file in zip(sentences, record.media.values(), strict=True):
            picture = pixels(file)
            assert any(f"A picture of {subject}" in sentence for subject in PHOTOS.values())
            for colour, shape, row, column in re.findall(r"a (\w+) (\w+) at the (\w+) (\w+)", sentence):
                if colour not in VIVID:
                    continue
                height, width = picture.shape[0] // 3, picture.shape[1] // 3
                y, x = ROWS.index(row) * height, COLUMNS.index(column) * width
                mask = looks(picture, colour)
                inside = mask[y : y + height, x : x + width]
                box = inside[inside.any(1)][:, inside.any(0)]
                assert inside.sum() >= 0.35 * (min(height, width) * 5 // 8) ** 2, sentence
                assert (box.mean() > 0.9) == (shape == "square"), sentence
                checked += 1
    assert checked > 50


def test_videos_show_what_their_sentences_say() -> None:
    _, settings = read_recipe(DOMAINS / "video.yaml")
    checked = 0
    for record in clips.build(settings, 40, held_out=False, seed=1):
        (part,) = [p for p in shown(record.body) if p["type"] == "video"]
        assert Fraction(part["fps"]).limit_denominator(100) in {Fraction(25, s) for s in settings.strides}
        (sentence,) = said(record.body)
        match = re.fullmatch(r"The (\w+) (\w+) appears at ([\d.]+) seconds\. The \1 \2 moves (\w+)\.", sentence)
        assert match is not None
        colour, _, seconds, direction = match.groups()
        if colour not in VIVID:
            continue
        masks = [looks(pixels(record.media[name]), colour) for name in part["frames"]]
        seen = [i for i, mask in enumerate(masks) if mask.sum() > 60]
        first = round(float(seconds) * part["fps"])
        assert seen[0] == first, sentence
        assert seen == list(range(first, len(masks)))
        centres = [np.argwhere(masks[i]).mean(0)[::-1] for i in (first, len(masks) - 1)]
        if len(masks) - first > 1:
            moved = centres[1] - centres[0]
            axis = int(np.abs(moved).argmax())
            expected = DIRECTIONS[direction]
            assert expected[axis] == np.sign(moved[axis]) and abs(moved[axis]) > 8, sentence
        checked += 1
    assert checked > 15


def shown(body: dict) -> list[dict]:
    if "content" in body:
        return body["content"]
    return [part for m in body["messages"] if m["role"] == "user" for part in m["content"]]


def test_the_film_keeps_its_own_clock() -> None:
    assert clips.load_film("carphone_pristine.mp4", 32, 32).fps == Fraction(30000, 1001)
    assert len(clips.load_film("bikes.mp4", 32, 32).frames) == 250


def test_training_and_held_out_share_nothing() -> None:
    train, held_out = digits.load_glyphs(False), digits.load_glyphs(True)
    assert not set(train.index) & set(held_out.index)
    assert len(train.index) + len(held_out.index) == len(load_digits().target)
    assert set(held_out.labels) == set(range(10))
    for name in PHOTOS:
        whole = load_photo(name, False).shape[1] + load_photo(name, True).shape[1]
        assert load_photo(name, True).shape[1] > 0 and whole == original_width(name)
    assert not set(clips.FILMS) & set(clips.HELD_OUT_FILMS)
    settings = plain_text.TextSettings(minimum=40, maximum=10**6, join=False, conversation_share=0.0)
    texts = [{said(r.body)[0] for r in plain_text.build(settings, 10**6, h, seed=1)} for h in (False, True)]
    modules = {d.module for d in plain_text.stdlib_docstrings(40)}
    assert {plain_text.in_held_out(m) for m in modules} == {False, True}
    shared = texts[0] & texts[1]  # the same words in two modules ("Return True if ...")
    assert len(shared) < 0.05 * len(texts[1])


def original_width(name: str) -> int:
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / name) as file:
        return file.width


def test_held_out_pictures_use_held_out_digits_only() -> None:
    allowed = set(digits.load_glyphs(True).index)
    for number in range(50):
        assert set(digits.draw(np.random.default_rng(number), KIND, 0.0, True).glyphs) <= allowed
