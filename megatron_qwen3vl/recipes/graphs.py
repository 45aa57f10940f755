"""Graphs of simple functions on a squared grid, with questions whose answers follow from the formula."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from megatron_qwen3vl.recipes.boxes import point_entry
from megatron_qwen3vl.recipes.scenes import pick

REACH = 6  # units that the axes show on each side of the origin
LINES = {"blue": (40, 60, 240), "red": (230, 30, 30)}
FINER = 4  # drawn so many times larger, then averaged
TICKS = (-4, -2, 2, 4)


@dataclass(frozen=True)
class Curve:
    """``line``: y = a x + k. ``parabola``: y = a (x - h)^2 + k. ``bend``: y = a |x - h| + k."""

    colour: str
    form: str
    a: float
    h: float
    k: float

    def y(self, x: np.ndarray | float) -> np.ndarray:
        shifted = np.asarray(x, float) - self.h
        return self.a * {"line": shifted, "parabola": shifted**2, "bend": np.abs(shifted)}[self.form] + self.k

    @property
    def formula(self) -> str:
        inner = "x" if self.h == 0 else f"(x {'-' if self.h > 0 else '+'} {abs(self.h):g})"
        body = {"line": "x", "parabola": f"{inner}^2", "bend": f"|{inner.strip('()')}|"}[self.form]
        factor = {1.0: "", -1.0: "-"}.get(self.a, f"{self.a:g}")
        return f"y = {factor}{body}" + ("" if self.k == 0 else f" {'+' if self.k > 0 else '-'} {abs(self.k):g}")


def draw_curves(rng: np.random.Generator, most: int) -> tuple[Curve, ...]:
    """One or more curves of different colours; at most one of them is not a line."""
    curves = []
    for number, colour in enumerate(rng.permutation(list(LINES))[: int(rng.integers(1, most + 1))]):
        form = pick(rng, ("line", "parabola", "bend")) if number == 0 else "line"
        a = float(pick(rng, (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0)))
        h = 0.0 if form == "line" else float(rng.integers(-2, 3))
        k = float(rng.integers(-3, 4))
        if form == "parabola":
            a /= 2
        curves.append(Curve(str(colour), form, a, h, k))
    return tuple(curves)


def place(x: float, y: float, side: int) -> tuple[float, float]:
    """Units -> pixels of a square picture."""
    unit = side / (2 * REACH)
    return side / 2 + x * unit, side / 2 - y * unit


def draw_graph(side: int, curves: tuple[Curve, ...]) -> np.ndarray:
    """uint8 [side, side, 3]."""
    large = Image.new("RGB", (side * FINER, side * FINER), "white")
    draw = ImageDraw.Draw(large)

    def at(x: float, y: float) -> tuple[float, float]:
        across, down = place(x, y, side)
        return across * FINER, down * FINER

    for step in range(-REACH, REACH + 1):
        grey, width = ((60, 60, 60), FINER * 3 // 2) if step == 0 else ((222, 222, 222), FINER)
        draw.line([at(step, -REACH), at(step, REACH)], grey, width)
        draw.line([at(-REACH, step), at(REACH, step)], grey, width)
    for curve in curves:
        xs = np.linspace(-REACH, REACH, 481)
        points = [at(float(x), float(y)) for x, y in zip(xs, curve.y(xs), strict=True) if abs(y) <= REACH + 2]
        draw.line(points, LINES[curve.colour], FINER * 2, joint="curve")
    picture = large.resize((side, side), Image.Resampling.BOX)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(9)
    for tick in TICKS:
        draw.text((place(tick, 0, side)[0], side / 2 + 3), str(tick), (60, 60, 60), font, anchor="mt")
        draw.text((side / 2 - 3, place(0, tick, side)[1]), str(tick), (60, 60, 60), font, anchor="rm")
    return np.asarray(picture)


def ask_graph(rng: np.random.Generator, side: int, curves: tuple[Curve, ...]) -> tuple[str, str]:
    """A question about the picture and its answer."""
    curve = pick(rng, curves)
    name = f"{curve.colour} {'line' if curve.form == 'line' else 'curve'}"
    questions: list[tuple[str, str]] = []
    for x in range(-4, 5):
        if abs(float(curve.y(x))) <= REACH - 1 and x != 0:
            questions.append((f"What is y on the {name} where x is {x}?", f"{float(curve.y(x)):g}"))
    questions = [pick(rng, questions)] if questions else []
    if abs(float(curve.y(0))) < REACH - 0.5:
        questions.append((f"Where does the {name} cross the y axis?", f"At y = {float(curve.y(0)):g}."))
    if curve.form == "line":
        questions.append((f"What is the slope of the {name}?", f"{curve.a:g}"))
    else:
        entry = point_entry(place(curve.h, curve.k, side), (side, side), None)
        end = "lowest" if curve.a > 0 else "highest"
        questions.append((f"Point to the {end} point of the {name}, output JSON.", json.dumps(entry)))
        questions.append((f"Where is the {end} point of the {name}?", f"At ({curve.h:g}, {curve.k:g})."))
    meeting = _meeting(curves)
    if meeting is not None:
        entry = point_entry(place(*meeting, side), (side, side), None)
        questions.append(("Point to where the two lines meet, output JSON.", json.dumps(entry)))
        questions.append(("Where do the two lines meet?", f"At ({meeting[0]:g}, {meeting[1]:g})."))
    return pick(rng, questions)


def _meeting(curves: tuple[Curve, ...]) -> tuple[float, float] | None:
    """Where two lines cross, if they do so inside the picture and at tenths."""
    if len(curves) != 2 or any(curve.form != "line" for curve in curves) or curves[0].a == curves[1].a:
        return None
    x = (curves[1].k - curves[0].k) / (curves[0].a - curves[1].a)
    y = float(curves[0].y(x))
    inside = max(abs(x), abs(y)) < REACH - 0.5 and abs(curves[0].a - curves[1].a) >= 1
    return (x, y) if inside and round(x, 1) == x and round(y, 1) == y else None


def graph_caption(curves: tuple[Curve, ...]) -> str:
    said = [f"The {curve.colour} {'line' if curve.form == 'line' else 'curve'} is {curve.formula}." for curve in curves]
    return " ".join([f"A graph with both axes from -{REACH} to {REACH}.", *said])
