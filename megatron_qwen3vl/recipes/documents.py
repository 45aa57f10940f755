"""Document pages to parse: one page, laid out by ``page_layout``, as QwenVL-HTML or QwenVL-Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from megatron_qwen3vl.recipes import page_text
from megatron_qwen3vl.recipes.page_layout import Page, PageStyle, column_width, set_page
from megatron_qwen3vl.recipes.page_markup import to_html, to_markdown
from megatron_qwen3vl.recipes.page_text import Element
from megatron_qwen3vl.recipes.record import Record, conversation, document, image, png, text

HTML, MARKDOWN = "qwenvl html", "qwenvl markdown"  # what the Qwen3-VL cookbooks ask with
DOMAIN = "document_parsing"


@dataclass(frozen=True)
class PageSettings:
    sizes: tuple[tuple[int, int], ...]  # width, height in pixels; one is drawn for each document
    font: tuple[int, int]  # smallest and largest size of the text in pixels
    two_columns_share: float  # of the documents; their text takes the smallest size


@dataclass(frozen=True)
class DocumentSettings:
    page: PageSettings
    elements: tuple[int, int]  # fewest and most that are set, where they fit
    html_share: float  # the rest is Markdown
    conversation_share: float


def _colour(rng: np.random.Generator, lowest: int, end: int) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(lowest, end, 3))
    return red, green, blue


def page_style(rng: np.random.Generator, settings: PageSettings) -> PageStyle:
    columns = 2 if rng.random() < settings.two_columns_share else 1
    smallest, largest = settings.font
    return PageStyle(
        size=settings.sizes[int(rng.integers(len(settings.sizes)))],
        columns=columns,
        font_size=smallest if columns == 2 else int(rng.integers(smallest, largest + 1)),
        serif=bool(rng.random() < 0.5),
        ink=_colour(rng, 0, 60),
        paper=_colour(rng, 235, 256),
        ruled=bool(rng.random() < 0.5),
    )


def flow(rng: np.random.Generator, style: PageStyle, held_out: bool) -> Iterator[Element]:
    """A document without end: a title, then sections of paragraphs, lists, tables and figures, numbered throughout."""
    tables = figures = 0
    yield page_text.title(rng, held_out, level=1)
    while True:
        if rng.random() < 0.8:
            yield page_text.title(rng, held_out, level=2)
        for _ in range(int(rng.integers(1, 4))):
            kind = rng.random()
            if kind < 0.5:
                yield page_text.paragraph(rng, held_out)
            elif kind < 0.65:
                yield page_text.listing(rng, held_out)
            elif kind < 0.85:
                tables += 1
                yield page_text.table(rng, tables, 3 if style.columns == 1 else 2)
            else:
                figures += 1
                width = int(column_width(style) * rng.uniform(0.4, 0.8))
                yield page_text.figure(rng, figures, held_out, width)


def draw(rng: np.random.Generator, settings: DocumentSettings, held_out: bool) -> Page:
    style = page_style(rng, settings.page)
    count = int(rng.integers(settings.elements[0], settings.elements[1] + 1))
    return set_page(list(islice(flow(rng, style, held_out), count)), style)


def build(settings: DocumentSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    """The splits share no sentence and no picture: they are of different modules and parts of the photographs."""
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        page = draw(rng, settings, held_out)
        as_html = rng.random() < settings.html_share
        markup = to_html(page) if as_html else to_markdown(page)
        if rng.random() < settings.conversation_share:
            body = conversation([([image("0.png"), text(HTML if as_html else MARKDOWN)], markup)], DOMAIN)
        else:
            body = document([image("0.png"), text(markup)], DOMAIN)
        yield Record(f"{number:06d}", body, {"0.png": png(page.pixels)})
