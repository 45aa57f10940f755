"""Long documents: the pages as images, then their text; and questions whose evidence lies on several pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_qwen3vl.recipes.documents import PageSettings, flow, page_style
from megatron_qwen3vl.recipes.page_layout import Page, PageStyle, set_page
from megatron_qwen3vl.recipes.page_markup import to_markdown
from megatron_qwen3vl.recipes.page_text import Element, Figure, Heading, Table
from megatron_qwen3vl.recipes.record import Part, Record, conversation, document, image, png, text

PARSE = "qwenvl markdown, all pages"
DOMAIN = "long_document"
Question = tuple[str, str]


@dataclass(frozen=True)
class LongDocumentSettings:
    page: PageSettings
    pages: tuple[int, int]  # fewest and most of a document
    questions: tuple[int, int]  # fewest and most of a conversation
    document_share: float  # pages and their text, without questions
    parse_share: float  # of the conversations, how many begin with the text of all pages


@dataclass(frozen=True)
class Found:
    """A table, figure or heading, and the page it stands on, from 1."""

    element: Element
    page: int


def set_pages(elements: Iterator[Element], style: PageStyle, count: int) -> list[Page]:
    """``count`` full pages; what does not fit on one begins the next."""
    pages, waiting = list[Page](), list[Element]()
    while len(pages) < count:
        waiting += [next(elements) for _ in range(40 - len(waiting))]
        page = set_page(waiting, style)
        if not page.placed:
            waiting.pop(0)  # larger than a page
            continue
        pages.append(page)
        del waiting[: len(page.placed)]
    return pages


def parsed(pages: Sequence[Page]) -> str:
    return "\n\n".join(f"<!-- Page {number} -->\n\n{to_markdown(page)}" for number, page in enumerate(pages, 1))


def ask(rng: np.random.Generator, pages: Sequence[Page], count: int) -> list[Question]:
    """At most ``count`` different questions that this document answers."""
    found = [Found(placed.element, number) for number, page in enumerate(pages, 1) for placed in page.placed]
    kinds: tuple[Callable[[np.random.Generator, list[Found]], Question | None], ...] = (_sum, _page, _count, _after)
    questions = dict[str, str]()
    for _ in range(4 * count):
        question = kinds[int(rng.integers(len(kinds)))](rng, found)
        if question is not None and len(questions) < count:
            questions.setdefault(*question)
    return list(questions.items())


def _pick(rng: np.random.Generator, some: Sequence[Found]) -> Found:
    return some[int(rng.integers(len(some)))]


def _sum(rng: np.random.Generator, found: list[Found]) -> Question | None:
    """Two numbers of two tables, on two pages."""
    tables = [f for f in found if isinstance(f.element, Table)]
    if len({table.page for table in tables}) < 2:
        return None
    first = _pick(rng, tables)
    second = _pick(rng, [table for table in tables if table.page != first.page])
    names, total = [], 0
    for table in (first.element, second.element):
        assert isinstance(table, Table)
        row, column = int(rng.integers(1, len(table.cells))), int(rng.integers(1, len(table.cells[0])))
        names.append(f"{table.cells[0][column]} of {table.cells[row][0]} in {_label(table.caption)}")
        total += int(table.cells[row][column])
    return f"What is the sum of {names[0]} and {names[1]}?", str(total)


def _page(rng: np.random.Generator, found: list[Found]) -> Question | None:
    """Where a figure, a table or a section is."""
    named = [(_name(f.element), f.page) for f in found]
    names = [name for name, _ in named]
    once = [(name, page) for name, page in named if name is not None and names.count(name) == 1]
    if not once:
        return None
    name, page = once[int(rng.integers(len(once)))]
    return f"On which page is {name}?", str(page)


def _count(rng: np.random.Generator, found: list[Found]) -> Question | None:
    """Over all pages."""
    kind, name = ((Table, "tables"), (Figure, "figures"))[int(rng.integers(2))]
    return f"How many {name} are there on all pages?", str(sum(isinstance(f.element, kind) for f in found))


def _after(rng: np.random.Generator, found: list[Found]) -> Question | None:
    """The next section after a table or figure, often on the next page."""
    places = [i for i, f in enumerate(found) if isinstance(f.element, Table | Figure)]
    if not places:
        return None
    place = places[int(rng.integers(len(places)))]
    following = [f.element.words for f in found[place:] if isinstance(f.element, Heading)]
    name = _name(found[place].element)
    return f"Which heading comes first after {name}?", following[0] if following else "None."


def _name(element: Element) -> str | None:
    if isinstance(element, Table | Figure):
        return _label(element.caption)
    return f"the heading “{element.words}”" if isinstance(element, Heading) else None


def _label(caption: str) -> str:
    """``Table 3. Stock and Price of ...`` -> ``Table 3``."""
    return caption.split(".")[0]


def build(settings: LongDocumentSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        style = page_style(rng, settings.page)
        pages = set_pages(
            flow(rng, style, held_out), style, int(rng.integers(settings.pages[0], settings.pages[1] + 1))
        )
        questions = ask(rng, pages, int(rng.integers(settings.questions[0], settings.questions[1] + 1)))
        media = {f"{index}.png": png(page.pixels) for index, page in enumerate(pages)}
        shown: list[Part] = [image(name) for name in media]
        if rng.random() < settings.document_share or not questions:
            body = document([*shown, text(parsed(pages))], DOMAIN)
        else:
            turns = [(PARSE, parsed(pages))] if rng.random() < settings.parse_share else []
            asked: list[tuple[Sequence[Part], str]] = [([text(q)], answer) for q, answer in [*turns, *questions]]
            asked[0] = ([*shown, *asked[0][0]], asked[0][1])
            body = conversation(asked, DOMAIN)
        yield Record(f"{number:06d}", body, media)
