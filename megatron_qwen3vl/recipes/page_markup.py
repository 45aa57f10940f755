"""A page's elements as QwenVL-HTML (a box for every element) and QwenVL-Markdown (boxes for images and tables only).

The forms are those of the Qwen2.5-VL report and the Qwen3-VL cookbooks: ``data-bbox="l t r b"``,
``<!-- Image (l, t, r, b) -->`` and ``<!-- Table (l, t, r, b) -->`` with the table as LaTeX; whole thousandths.
"""

from __future__ import annotations

from html import escape

from megatron_qwen3vl.recipes.boxes import Box, box_in_thousandths
from megatron_qwen3vl.recipes.page_layout import Page, Placed
from megatron_qwen3vl.recipes.page_text import Figure, Heading, Listing, Paragraph, Table


def to_html(page: Page) -> str:
    size = (page.pixels.shape[1], page.pixels.shape[0])
    return "\n".join(["<html><body>", *(_html(placed, size) for placed in page.placed), "</body></html>"])


def _html(placed: Placed, size: tuple[int, int]) -> str:
    def at(box: Box) -> str:
        return 'data-bbox="{} {} {} {}"'.format(*box_in_thousandths(box, size))

    element, parts = placed.element, placed.parts
    if isinstance(element, Heading):
        return f"<h{element.level} {at(placed.box)}>{escape(element.words)}</h{element.level}>"
    if isinstance(element, Paragraph):
        return f"<p {at(placed.box)}>{escape(element.words)}</p>"
    if isinstance(element, Listing):
        tag = "ol" if element.numbered else "ul"
        items = "".join(f"<li {at(box)}>{escape(i)}</li>" for i, box in zip(element.items, parts, strict=True))
        return f"<{tag} {at(placed.box)}>{items}</{tag}>"
    if isinstance(element, Table):
        head, *body = element.cells
        rows = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
        rows += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body]
        caption = f"<p {at(parts[0])}>{escape(element.caption)}</p>"
        return caption + f"\n<table {at(parts[1])}>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
    picture, caption = f"<img {at(parts[0])}/>", f"<p {at(parts[1])}>{escape(element.caption)}</p>"
    return f'<div class="image caption" {at(placed.box)}>{picture}{caption}</div>'


def to_markdown(page: Page) -> str:
    size = (page.pixels.shape[1], page.pixels.shape[0])
    return "\n\n".join(_markdown(placed, size) for placed in page.placed)


def _markdown(placed: Placed, size: tuple[int, int]) -> str:
    def at(name: str, box: Box) -> str:
        return "<!-- {} ({}, {}, {}, {}) -->".format(name, *box_in_thousandths(box, size))

    element = placed.element
    if isinstance(element, Heading):
        return f"{'#' * element.level} {element.words}"
    if isinstance(element, Paragraph):
        return element.words
    if isinstance(element, Listing):
        marks = [f"{n}." if element.numbered else "-" for n in range(1, len(element.items) + 1)]
        return "\n".join(f"{mark} {item}" for mark, item in zip(marks, element.items, strict=True))
    if isinstance(element, Figure):
        return f"{at('Image', placed.parts[0])}\n\n{element.caption}"
    return f"{element.caption}\n\n{at('Table', placed.parts[1])}\n{to_latex(element.cells)}"


def to_latex(cells: tuple[tuple[str, ...], ...]) -> str:
    columns = "|" + "c|" * len(cells[0])
    special = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"})
    rows = [" & ".join(cell.translate(special) for cell in row) + r" \\ \hline" for row in cells]
    return "\n".join([f"\\begin{{tabular}}{{{columns}}}", r"\hline", *rows, r"\end{tabular}"])
