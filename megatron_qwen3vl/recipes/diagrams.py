"""Diagrams with exact answers: triangles with lengths and angles, and graphs of functions (``graphs``)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from megatron_qwen3vl.recipes.boxes import point_entry
from megatron_qwen3vl.recipes.graphs import FINER, ask_graph, draw_curves, draw_graph, graph_caption
from megatron_qwen3vl.recipes.record import Record, conversation, document, image, png, text
from megatron_qwen3vl.recipes.scenes import pick
from megatron_qwen3vl.recipes.splits import belongs

DOMAIN = "stem"
UNIT = 10  # pixels of one unit of length
LETTERS = "ABCDEFGHKLMNPQRSTUVXYZ"
DOT, DOT_RADIUS = (230, 30, 30), 2.5
MARGIN = 26  # pixels around a triangle, for its letters
LABEL_AWAY = 11  # pixels from a corner to the middle of its letter
LEAST_SIDE, LEAST_ANGLE, ANGLE_AWAY = 45, 25.0, 6.0  # pixels; degrees; degrees that an angle is away from 90


@dataclass(frozen=True)
class DiagramSettings:
    sides: tuple[int, ...]  # of the square picture in pixels; one is drawn for each picture
    triangle_share: float  # the others are graphs of functions
    caption_share: float  # documents: the picture, then what it shows; the others are questions
    curves: int  # most curves of a graph


@dataclass(frozen=True)
class Triangle:
    letters: str  # three
    corners: tuple[tuple[int, int], ...]  # pixels, in the order of the letters

    def length(self, first: int, second: int) -> float:
        """In units, as it is written in the picture: to one decimal."""
        (x0, y0), (x1, y1) = self.corners[first], self.corners[second]
        return round(float(np.hypot(x1 - x0, y1 - y0)) / UNIT, 1)

    def angle(self, corner: int) -> float:
        """Degrees, from the corners' exact places."""
        here, one, two = (np.array(self.corners[(corner + i) % 3], float) for i in range(3))
        a, b = one - here, two - here
        return float(np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))))

    @property
    def kind(self) -> str:
        largest = max(self.angle(corner) for corner in range(3))
        return "right-angled" if abs(largest - 90) < 1e-6 else "obtuse" if largest > 90 else "acute"


def draw_triangle(rng: np.random.Generator, side: int) -> Triangle:
    """A third of them with a right angle; the others clearly without one."""
    letters = "".join(rng.permutation(list(LETTERS))[:3])
    right = rng.random() < 1 / 3
    while True:
        corners = rng.integers(MARGIN, side - MARGIN + 1, (3, 2))
        if right:
            corners[1] = (corners[0, 0], corners[1, 1])
            corners[2] = (corners[2, 0], corners[0, 1])
        triangle = Triangle(letters, tuple((int(x), int(y)) for x, y in corners))
        sides = [np.hypot(*(corners[i] - corners[i - 1])) for i in range(3)]
        if min(sides) < LEAST_SIDE:
            continue
        angles = sorted(triangle.angle(corner) for corner in range(3))
        if angles[0] >= LEAST_ANGLE and (triangle.kind == "right-angled" or abs(angles[2] - 90) >= ANGLE_AWAY):
            return triangle


def draw_picture(side: int, triangle: Triangle) -> np.ndarray:
    """uint8 [side, side, 3]: sides with their lengths, corners as red dots with their letters outside."""
    large = Image.new("RGB", (side * FINER, side * FINER), "white")
    draw = ImageDraw.Draw(large)
    places = [((x + 0.5) * FINER, (y + 0.5) * FINER) for x, y in triangle.corners]
    draw.line([*places, places[0]], (40, 40, 60), 6, joint="curve")
    for x, y in places:
        reach = DOT_RADIUS * FINER
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), DOT)
    picture = large.resize((side, side), Image.Resampling.BOX)
    draw = ImageDraw.Draw(picture)
    middle = np.mean(triangle.corners, 0)
    for letter, corner in zip(triangle.letters, triangle.corners, strict=True):
        away = (corner - middle) / np.linalg.norm(corner - middle)
        draw.text(_whole(corner + away * LABEL_AWAY), letter, "black", ImageFont.load_default(12), anchor="mm")
    for index in range(3):
        one, two = np.array(triangle.corners[index]), np.array(triangle.corners[(index + 1) % 3])
        across = np.array([two[1] - one[1], one[0] - two[0]]) / np.linalg.norm(two - one)
        outwards = across if across @ ((one + two) / 2 - middle) > 0 else -across
        words = f"{triangle.length(index, (index + 1) % 3):g}"
        place = (one + two) / 2 + outwards * 11
        draw.text(_whole(place), words, (90, 90, 90), ImageFont.load_default(9), anchor="mm")
    return np.asarray(picture)


def _whole(place: np.ndarray) -> tuple[int, int]:
    return round(float(place[0])), round(float(place[1]))


def ask_triangle(rng: np.random.Generator, side: int, triangle: Triangle) -> tuple[str, str]:
    """A question about the picture and its answer."""
    corner = int(rng.integers(0, 3))
    other = (corner + 1) % 3
    letter, ends = triangle.letters[corner], triangle.letters[corner] + triangle.letters[other]
    (x0, y0), (x1, y1) = triangle.corners[corner], triangle.corners[other]
    perimeter = sum(triangle.length(i, (i + 1) % 3) for i in range(3))
    angles = [triangle.angle(i) for i in range(3)]
    largest = triangle.letters[int(np.argmax(angles))]

    def point(x: float, y: float) -> str:
        return json.dumps(point_entry((x + 0.5, y + 0.5), (side, side), None))

    questions = [
        (f"Point to corner {letter}, output JSON.", point(x0, y0)),
        (f"Point to the midpoint of side {ends}, output JSON.", point((x0 + x1) / 2, (y0 + y1) / 2)),
        (f"How long is side {ends}?", f"{triangle.length(corner, other):g}"),
        ("What is the perimeter of the triangle?", f"{perimeter:.1f}"),
        ("Is the triangle acute, right-angled or obtuse?", f"It is {triangle.kind}."),
    ]
    if sorted(angles)[2] - sorted(angles)[1] >= ANGLE_AWAY:
        questions.append(("Which corner has the largest angle?", f"Corner {largest}."))
    return pick(rng, questions)


def triangle_caption(triangle: Triangle) -> str:
    a, b, c = list(triangle.letters)
    return (
        f"A triangle {a}{b}{c} with {a}{b} = {triangle.length(0, 1):g}, {b}{c} = {triangle.length(1, 2):g} and "
        f"{c}{a} = {triangle.length(2, 0):g}. It is {triangle.kind}."
    )


def build(settings: DiagramSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        is_triangle = rng.random() < settings.triangle_share
        while True:
            side = pick(rng, settings.sides)
            drawn = draw_triangle(rng, side) if is_triangle else draw_curves(rng, settings.curves)
            # letters and colours apart: the same lengths or formula are never in both splits
            facts = drawn.corners if isinstance(drawn, Triangle) else [(c.form, c.a, c.h, c.k) for c in drawn]
            if belongs(str(facts), held_out):
                break
        if isinstance(drawn, Triangle):
            pixels, caption = draw_picture(side, drawn), triangle_caption(drawn)
            question, answer = ask_triangle(rng, side, drawn)
        else:
            pixels, caption = draw_graph(side, drawn), graph_caption(drawn)
            question, answer = ask_graph(rng, side, drawn)
        if rng.random() < settings.caption_share:
            body = document([image("0.png"), text(caption)], DOMAIN)
        else:
            body = conversation([([image("0.png"), text(question)], answer)], DOMAIN)
        yield Record(f"{number:06d}", body, {"0.png": png(pixels)})
