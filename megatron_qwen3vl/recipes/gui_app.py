"""A small form of an application: fields, ticks and buttons, its state, and its picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from megatron_qwen3vl.recipes.boxes import Box
from megatron_qwen3vl.recipes.drawing import Mark, Rectangle, Words, draw_marks, text_width
from megatron_qwen3vl.recipes.scenes import pick

TITLES = ("Settings", "Profile", "New order", "Booking", "Sign up", "Feedback")
FIELDS = {
    "Name": ("Ada", "Ben", "Chloe", "Dmitri", "Emma", "Farid"),
    "City": ("Oslo", "Lima", "Cairo", "Quito", "Bern", "Accra"),
    "Phone": ("5521", "7043", "9186", "2370", "6648"),
    "Pet": ("cat", "dog", "parrot", "rabbit", "turtle"),
}
TICKS = ("Email me", "Dark mode", "Gift wrap", "Remember me", "Newsletter")
BUTTONS = ("Save", "Cancel", "Reset", "Help")
DONE = {"Save": "Saved.", "Cancel": "Cancelled.", "Reset": "Reset.", "Help": "No help yet."}
# page, title bar, ink on it, ink, field, edge, edge of the focused field, button, ink on it
THEMES = (
    ("#f2f2f2", "#1f4e79", "#ffffff", "#202020", "#ffffff", "#909090", "#e07b00", "#2b6cb0", "#ffffff"),
    ("#23272f", "#101318", "#f0f0f0", "#e8e8e8", "#353b47", "#707a8a", "#ffb000", "#3c8d5a", "#ffffff"),
    ("#fff8ee", "#5b2a86", "#ffffff", "#202020", "#ffffff", "#a08f70", "#d00060", "#5b2a86", "#ffffff"),
)
ROW, BAR, TICK = 20, 18, 11  # pixels


@dataclass(frozen=True)
class Element:
    kind: str  # field, tick or button
    label: str
    box: Box

    @property
    def name(self) -> str:
        return f'{self.kind} "{self.label}"'

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def holds(self, x: float, y: float) -> bool:
        return self.box[0] <= x < self.box[2] and self.box[1] <= y < self.box[3]


@dataclass(frozen=True)
class App:
    """What is laid out where; ``theme`` is one of THEMES."""

    canvas: tuple[int, int]
    title: str
    theme: tuple[str, ...]
    elements: tuple[Element, ...]

    def of(self, kind: str) -> tuple[Element, ...]:
        return tuple(element for element in self.elements if element.kind == kind)


@dataclass(frozen=True)
class State:
    """``values``: (field, text) pairs; ``ticked``: labels; ``message``: the line at the bottom."""

    values: tuple[tuple[str, str], ...]
    ticked: frozenset[str]
    focus: str | None
    message: str

    def text(self, field: str) -> str:
        return dict(self.values)[field]


def draw_app(rng: np.random.Generator, canvas: tuple[int, int], fields: int, ticks: int, buttons: int) -> App:
    """Rows of fields, then ticks, then a row of buttons, at a random height and indent."""
    theme = pick(rng, THEMES)
    top = BAR + 5 + int(rng.integers(0, max(1, canvas[1] - BAR - 24 - ROW * (fields + ticks + 1))))
    indent = int(rng.integers(4, 14))
    elements = []
    for label in rng.permutation(list(FIELDS))[:fields]:
        left = indent + 40
        elements.append(Element("field", str(label), (left, top, left + int(rng.integers(60, 76)), top + 15)))
        top += ROW
    for label in rng.permutation(TICKS)[:ticks]:
        elements.append(Element("tick", str(label), (indent, top + 2, indent + TICK, top + 2 + TICK)))
        top += ROW
    left = indent
    for label in rng.permutation(BUTTONS)[:buttons]:
        wide = text_width(str(label)) + 12
        elements.append(Element("button", str(label), (left, top, left + wide, top + 16)))
        left += wide + 6
    return App(canvas, pick(rng, TITLES), theme, tuple(elements))


def picture(app: App, state: State) -> np.ndarray:
    """uint8 [height, width, 3]."""
    width, height = app.canvas
    page, bar, bar_ink, ink, field, edge, focus, button, button_ink = app.theme
    marks: list[Mark] = [
        Rectangle(0, 0, width, height, page),
        Rectangle(0, 0, width, BAR, bar),
        Words(6, BAR // 2, app.title, bar_ink, False),
    ]
    for element in app.elements:
        left, top, right, bottom = element.box
        middle = (top + bottom) // 2
        if element.kind == "button":
            marks.append(Rectangle(left, top, right - left, bottom - top, button))
            marks.append(Words((left + right) // 2, middle, element.label, button_ink, True))
            continue
        outline = focus if element.label == state.focus else edge
        marks.append(Rectangle(left, top, right - left, bottom - top, outline))
        marks.append(Rectangle(left + 1, top + 1, right - left - 2, bottom - top - 2, field))
        if element.kind == "field":
            marks.append(Words(left - 40, middle, element.label, ink, False))
            if state.text(element.label):
                marks.append(Words(left + 4, middle, state.text(element.label), ink, False))
        else:
            marks.append(Words(right + 5, middle, element.label, ink, False))
            if element.label in state.ticked:
                marks.append(Rectangle(left + 3, top + 3, right - left - 6, bottom - top - 6, focus))
    if state.message:
        marks.append(Words(6, height - 9, state.message, ink, False))
    return draw_marks(app.canvas, marks)


def click(app: App, state: State, x: float, y: float) -> State:
    """What a click at a place in pixels does."""
    for element in app.elements:
        if element.holds(x, y):
            if element.kind == "field":
                return replace(state, focus=element.label)
            if element.kind == "tick":
                return replace(state, focus=None, ticked=state.ticked ^ {element.label})
            return replace(state, focus=None, message=DONE[element.label])
    return replace(state, focus=None)


def type_text(state: State, words: str) -> State:
    """Typing replaces what the focused field holds."""
    return replace(state, values=tuple((f, words if f == state.focus else v) for f, v in state.values))
