"""Diagrams: corners, lengths, slopes and values read from the built pictures agree with what the samples say."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
from built import built
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from seen import HUES, hues, pixels

from megatron_qwen3vl.recipes.reader import ReadSample


class Triangle:
    """Three red dots, each with the letter that is written nearest to it, away from the triangle's middle."""

    def __init__(self, picture: np.ndarray) -> None:
        hue, vivid = hues(picture)
        labels, count = ndimage.label(vivid)
        assert count == 3
        places = np.array(ndimage.center_of_mass(vivid, labels, [1, 2, 3]))[:, ::-1]
        self.side = len(picture)
        self.corners = {}
        for place in places:
            outwards = place - places.mean(0)
            middle = place + outwards / np.linalg.norm(outwards) * 11
            self.corners[read_letter(picture, middle)] = place
        assert len(self.corners) == 3, "three letters"

    def length(self, ends: str) -> float:
        return float(np.linalg.norm(self.corners[ends[0]] - self.corners[ends[1]])) / 10

    def angle(self, letter: str) -> float:
        a, b = (place - self.corners[letter] for other, place in self.corners.items() if other != letter)
        return float(np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))))

    def kind(self) -> str:
        largest = max(self.angle(letter) for letter in self.corners)
        return "right-angled" if abs(largest - 90) < 3 else "obtuse" if largest > 90 else "acute"

    def wrong(self, words: str) -> bool:
        """Whether a question with its answer, or a caption, is false."""
        said = [(m[1], float(m[2])) for m in re.finditer(r"([A-Z]{2})(?: = |\?\n)(\d+(?:\.\d+)?)", words)]
        false = [ends for ends, value in said if abs(self.length(ends) - value) > 0.12]
        kind = re.search(r"It is ([\w-]+)\.", words)
        place = re.search(r'"point_2d": (\[.*?\])', words)
        if place is not None:
            asked = re.search(r"(corner|side) ([A-Z]+),", words)
            assert asked is not None
            truth = np.mean([self.corners[letter] for letter in asked.group(2)], 0) + 0.5
            point = np.array(json.loads(place.group(1))) / 1000 * self.side
            return bool(np.abs(point - truth).max() > 1)
        largest = re.search(r"Corner ([A-Z])\.", words)
        if largest is not None:
            return largest.group(1) != max(self.corners, key=self.angle)
        total = re.search(r"perimeter.*\n([\d.]+)", words)
        if total is not None:
            return abs(sum(self.length(a + b) for a, b in combinations(self.corners, 2)) - float(total.group(1))) > 0.3
        assert said or kind is not None, words
        return bool(false) or (kind is not None and kind.group(1) != self.kind())


LETTERS = "ABCDEFGHKLMNPQRSTUVXYZ"


@cache
def written() -> np.ndarray:
    """[letter, 18, 18]: ink of each letter, in the middle."""
    drawn = []
    for letter in LETTERS:
        canvas = Image.new("L", (18, 18))
        ImageDraw.Draw(canvas).text((9, 9), letter, 255, ImageFont.load_default(12), anchor="mm")
        drawn.append(np.asarray(canvas, float))
    return np.stack(drawn)


def read_letter(picture: np.ndarray, middle: np.ndarray) -> str:
    """Which capital letter is written around a place: each is compared, a pixel to and fro."""
    ink = np.pad(255 - picture.max(-1).astype(float), 12)
    column, row = (int(round(v)) + 12 for v in middle)
    scores = []
    for down, across in product((-1, 0, 1), repeat=2):
        crop = ink[row + down - 9 : row + down + 9, column + across - 9 : column + across + 9]
        difference = ((written() - crop) ** 2)[:, 4:14, 4:14].sum((1, 2))
        scores.append((float(difference.min()), LETTERS[int(difference.argmin())]))
    return min(scores)[1]


class Graph:
    """Coloured curves, each as the mean height of its pixels in every column."""

    def __init__(self, picture: np.ndarray) -> None:
        self.side = len(picture)
        hue, vivid = hues(picture)
        self.masks = {c: vivid & (np.abs((hue - HUES[c] + 180) % 360 - 180) < 25) for c in ("blue", "red")}
        self.masks = {c: mask for c, mask in self.masks.items() if mask.sum() > 30}

    def points(self, colour: str) -> np.ndarray:
        """[n, 2]: x and y in units, where a column shows the curve in one piece."""
        found = []
        for column in range(self.side):
            rows = np.flatnonzero(self.masks[colour][:, column])
            if len(rows) and rows[-1] - rows[0] < 16 and rows[0] > 0 and rows[-1] < self.side - 1:
                found.append((column + 0.5, rows.mean() + 0.5))
        unit = self.side / 12
        return (np.array(found) - self.side / 2) / unit * (1, -1)

    def on(self, colour: str, x: float, y: float, near: float = 1.6) -> bool:
        """Whether the curve's pixels are at (x, y), within ``near`` pixels."""
        rows, columns = np.nonzero(self.masks[colour])
        at = np.array([self.side / 2 + x * self.side / 12, self.side / 2 - y * self.side / 12])
        return bool(np.hypot(columns + 0.5 - at[0], rows + 0.5 - at[1]).min() <= near)

    def wrong(self, words: str) -> bool:
        formulas = re.findall(r"The (\w+) (?:line|curve) is y = (.+?)\.(?= |$)", words)
        if formulas:
            return {c for c, _ in formulas} != set(self.masks) or any(not self.follows(*f) for f in formulas)
        colour = next((c for c in ("blue", "red") if f"the {c} " in words), None)
        if (found := re.search(r"where x is (-?\d+)\?\n(-?[\d.]+)$", words)) is not None:
            return not self.on(str(colour), float(found.group(1)), float(found.group(2)))
        if (found := re.search(r"At y = (-?[\d.]+?)\.$", words)) is not None:
            return not self.on(str(colour), 0, float(found.group(1)))
        if (found := re.search(r"slope.*\n(-?[\d.]+)$", words)) is not None:
            points = self.points(str(colour))
            return abs(np.polyfit(*points.T, 1)[0] - float(found.group(1))) > 0.1
        if (found := re.search(r"At \((-?[\d.]+), (-?[\d.]+)\)", words)) is not None:
            x, y = float(found.group(1)), float(found.group(2))
        else:
            place = re.search(r'"point_2d": \[(\d+), (\d+)\]', words)
            assert place is not None, words
            x, y = float(place.group(1)) / 1000 * 12 - 6, 6 - float(place.group(2)) / 1000 * 12
        if colour is None:
            return not all(self.on(c, x, y, 3.0) for c in self.masks)  # one lies over the other
        sign = 1 if "lowest" in words else -1
        ends = self.points(colour)
        return not self.on(colour, x, y) or sign * y > (sign * ends[:, 1]).min() + 0.25

    def follows(self, colour: str, formula: str) -> bool:
        """The formula, evaluated as Python, lies on the curve's pixels, and the curve has no other pixels."""
        code = re.sub(r"\|(.+?)\|", r"abs(\1)", formula).replace("^", "**")
        code = re.sub(r"(\d)(x|\(|abs)", r"\1*\2", code)
        inside = [(x, eval(code, {"abs": abs, "x": x})) for x in np.linspace(-5.5, 5.5, 45)]
        inside = [(x, y) for x, y in inside if abs(y) < 5.5]
        share = np.mean([self.on(colour, x, y) for x, y in inside])  # the other curve may lie over it
        return bool(share > 0.85)


def words_of(sample: ReadSample) -> str:
    if "content" in sample.body:
        return str(sample.body["content"][1]["text"])
    ((question, answer),) = sample.turns
    return f"{question}\n{answer}"


def wrong(sample: ReadSample, words: str) -> bool:
    picture = pixels(sample.images[0])
    parts = ndimage.find_objects(ndimage.label(hues(picture)[1])[0])
    is_triangle = len(parts) == 3 and all(rows.stop - rows.start < 9 for rows, _ in parts)  # its dots
    return (Triangle if is_triangle else Graph)(picture).wrong(words)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[ReadSample]:
    return built("diagrams", tmp_path_factory.mktemp("diagrams"))


def test_diagrams_are_what_is_said_of_them(samples: list[ReadSample]) -> None:
    assert len(samples) == 200
    assert not [words_of(sample) for sample in samples if wrong(sample, words_of(sample))]
    asked = [words_of(s).split("?")[0][:40] for s in samples if "messages" in s.body]
    kinds = {re.sub(r"[A-Z]{1,3}\b|-?\d+(\.\d+)?|blue|red|line|curve|lowest|highest", "", words) for words in asked}
    assert len(kinds) >= 10, kinds


def lies(words: str) -> list[str]:
    """A number at the end, in a point or in a formula changed; another kind of triangle."""
    if "point_2d" in words:
        return [re.sub(r"\[(\d+), ", lambda m: f"[{(int(m[1]) + 70) % 1000}, ", words)]
    if "It is" in words and "=" not in words:
        kinds = ["acute", "obtuse", "right-angled"]
        return [re.sub(r"It is [\w-]+", f"It is {kind}", words) for kind in kinds if f"is {kind}" not in words]
    if re.search(r"[=\n(] ?-?[\d.]+\.?$", words) or "y = " in words or " = " in words:
        return [re.sub(r"(-?\d+(?:\.\d+)?)(?!.*\d)", lambda m: f"{float(m[1]) + 1:g}", words, count=1, flags=re.S)]
    return []


def test_false_words_are_found(samples: list[ReadSample]) -> None:
    missed, total = [], 0
    for sample in samples[:100]:
        for lie in lies(words_of(sample)):
            total += 1
            if not wrong(sample, lie):
                missed.append(f"{words_of(sample)} -> {lie}")
    assert total >= 60 and len(missed) <= 0.03 * total, missed
