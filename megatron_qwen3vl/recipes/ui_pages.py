"""Pictures of small web pages and the HTML that lays them out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

import numpy as np

from megatron_qwen3vl.recipes.drawing import FONT_SIZE, Mark, Rectangle, Words, draw_marks, text_width
from megatron_qwen3vl.recipes.record import Record, conversation, image, png, text
from megatron_qwen3vl.recipes.scenes import pick
from megatron_qwen3vl.recipes.splits import belongs

DOMAIN = "ui_code"
ASK = "Write HTML with inline CSS that looks like this page."
PAD = 4  # pixels between an element's edge and its text
TITLES = ("Garden Club", "Book Shop", "City Museum", "Bike Repair", "Weather", "Recipes", "Chess Evenings", "My Notes")
LINKS = ("Home", "News", "Shop", "About", "Help", "Log in")
HEADINGS = ("Open today", "New books", "Our team", "Next week", "Best of May", "Free tickets", "Two for one", "Events")
LINES = ("from nine to five", "in the main hall", "all ages welcome", "while they last", "near the station",
         "bring a friend", "free of charge", "book a place now")  # fmt: skip
BUTTONS = ("Buy", "Join", "Read on", "Call us", "Reserve", "Send")
# page, bar, text on the bar, card, text, button, text on the button
THEMES = (
    ("#f4f4f4", "#1f4e79", "#ffffff", "#ffffff", "#222222", "#e07b00", "#ffffff"),
    ("#fffaf0", "#5b2a86", "#ffffff", "#f0e4d0", "#2b2b2b", "#2e8b57", "#ffffff"),
    ("#20242c", "#101318", "#f0f0f0", "#2f3542", "#e6e6e6", "#4a90d9", "#101318"),
    ("#e8f5e9", "#2e7d32", "#ffffff", "#ffffff", "#1b1b1b", "#c62828", "#ffffff"),
)


@dataclass(frozen=True)
class UiSettings:
    canvases: tuple[tuple[int, int], ...]  # width, height in pixels; one is drawn for each picture
    cards: tuple[int, int]  # fewest and most cards of a page


@dataclass(frozen=True)
class Element:
    """An absolutely placed box with at most one line of text, in the middle or at the left."""

    tag: str
    area: Rectangle
    words: str
    ink: str
    centred: bool

    def marks(self) -> list[Mark]:
        a = self.area
        x = a.left + a.width // 2 if self.centred else a.left + PAD
        return [a, *([Words(x, a.top + a.height // 2, self.words, self.ink, self.centred)] if self.words else [])]

    def html(self) -> str:
        a = self.area
        style = f"left:{a.left}px;top:{a.top}px;width:{a.width}px;height:{a.height}px;background:{a.fill}"
        if self.words:
            style += f";color:{self.ink};line-height:{a.height}px"
            style += ";text-align:center" if self.centred else f";text-indent:{PAD}px"
        return f'<{self.tag} style="{style}">{escape(self.words)}</{self.tag}>'


@dataclass(frozen=True)
class Page:
    canvas: tuple[int, int]
    background: str
    elements: tuple[Element, ...]

    def pixels(self) -> np.ndarray:
        """uint8 [height, width, 3]."""
        whole = Rectangle(0, 0, *self.canvas, self.background)
        return draw_marks(self.canvas, [whole, *(mark for element in self.elements for mark in element.marks())])

    def html(self) -> str:
        tags = ",".join(sorted({element.tag for element in self.elements}))
        return "\n".join(
            [
                "<!DOCTYPE html>",
                "<html><head><style>",
                f"body{{margin:0;width:{self.canvas[0]}px;height:{self.canvas[1]}px;background:{self.background}}}",
                f"{tags}{{position:absolute;margin:0;padding:0;border:0;font:{FONT_SIZE}px sans-serif}}",
                "</style></head><body>",
                *(element.html() for element in self.elements),
                "</body></html>",
            ]
        )


def draw_page(rng: np.random.Generator, settings: UiSettings) -> Page:
    """A bar with title and links, and cards below it: headings, a line of text, some with a button."""
    canvas = width, height = pick(rng, settings.canvases)
    page, bar, bar_ink, card, ink, button, button_ink = pick(rng, THEMES)
    tall = int(rng.integers(18, 27))
    elements = [
        Element("header", Rectangle(0, 0, width, tall, bar), "", bar_ink, False),
        Element("h1", Rectangle(0, 0, 2 * PAD + 70, tall, bar), pick(rng, TITLES), bar_ink, False),
    ]
    right = width
    for link in rng.permutation(LINKS)[: int(rng.integers(1, 4))]:
        room = text_width(str(link)) + 2 * PAD
        if right - room < 2 * PAD + 78:
            break
        right -= room
        elements.append(Element("a", Rectangle(right, 0, room, tall, bar), str(link), bar_ink, True))
    count = int(rng.integers(settings.cards[0], settings.cards[1] + 1))
    columns = min(count, 2 if width >= 150 else 1)
    rows, gap = -(-count // columns), 6
    wide, high = (width - gap * (columns + 1)) // columns, (height - tall - gap * (rows + 1)) // rows
    headings, lines = rng.permutation(HEADINGS), rng.permutation(LINES)
    for index in range(count):
        left = gap + index % columns * (wide + gap)
        top = tall + gap + index // columns * (high + gap)
        elements.append(Element("section", Rectangle(left, top, wide, high, card), "", ink, False))
        elements.append(Element("h2", Rectangle(left, top + 2, wide, 14, card), str(headings[index]), ink, False))
        if high >= 34:
            elements.append(Element("p", Rectangle(left, top + 17, wide, 13, card), str(lines[index]), ink, False))
        if high >= 52 and rng.random() < 0.7:
            words = pick(rng, BUTTONS)
            area = Rectangle(left + PAD, top + high - 19, text_width(words) + 4 * PAD, 15, button)
            elements.append(Element("button", area, words, button_ink, True))
    return Page(canvas, page, tuple(elements))


def build(settings: UiSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        page = draw_page(rng, settings)
        while not belongs(page.html(), held_out):
            page = draw_page(rng, settings)
        body = conversation([([image("0.png"), text(ASK)], page.html())], DOMAIN)
        yield Record(f"{number:06d}", body, {"0.png": png(page.pixels())})
