"""Document pages: the markup parses, its boxes hold the ink, the ink shows the words, the order is that of reading."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_qwen3vl.recipes.build import build
from megatron_qwen3vl.recipes.reader import ReadSample, read_samples

sys.path.append(str(Path(__file__).parent))
from page_reader import Item, crop, first_words_likeness, ink, pixels, read_html, read_latex, read_markdown

DOMAINS = Path(__file__).parents[3] / "data_recipes" / "domains"
SAMPLES = 80
REDRAWN = 10  # of them; it is the expensive part
ELEMENTS = {"h1", "h2", "p", "li", "img", "table"}


def built(name: str, folder: Path, splits: dict[str, int], **changes: object) -> list[ReadSample]:
    tree = yaml.safe_load((DOMAINS / f"{name}.yaml").read_text()) | {"splits": splits}
    tree["settings"] |= changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    build(folder / "recipe.yaml", folder / "out")
    return [sample for split in splits for sample in read_samples(folder / "out" / split)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[ReadSample]:
    return built("documents", tmp_path_factory.mktemp("documents"), {"train": SAMPLES - 20, "held_out": 20})


def markup_of(sample: ReadSample) -> str:
    return sample.parts[-1]["text"]


def items_of(sample: ReadSample) -> list[Item]:
    markup = markup_of(sample)
    return read_html(markup) if markup.startswith("<html>") else read_markdown(markup)


def test_boxes_hold_all_ink_and_do_not_overlap(pages: list[ReadSample]) -> None:
    kinds = set()
    for sample in pages:
        page = pixels(sample.images[0])
        dark, items = ink(page), items_of(sample)
        kinds |= {item.kind for item in items}
        boxes = [item.box for item in items if item.box is not None]
        for left, right in ((a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]):
            width, height = (
                min(left[2], right[2]) - max(left[0], right[0]),
                min(left[3], right[3]) - max(left[1], right[1]),
            )
            assert min(width, height) <= 3, (sample.key, left, right)
        for box in boxes:
            inside = dark[crop(box, page)]
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            edges = (rows[0], columns[0], inside.shape[0] - 1 - rows[-1], inside.shape[1] - 1 - columns[-1])
            assert max(edges) <= 4 or page[crop(box, page)].std() > 15, (sample.key, box, edges)
        if markup_of(sample).startswith("<html>"):
            for box in boxes:
                dark[crop(box, page)] = False
            assert not dark.any(), f"{sample.key}: ink outside every box"
    assert kinds == ELEMENTS


def test_order_is_that_of_reading(pages: list[ReadSample]) -> None:
    """Down a column, then on at the top of the next one."""
    for sample in pages:
        boxes = [item.box for item in items_of(sample) if item.box is not None]
        for above, below in pairwise(boxes):
            next_column = below[0] >= above[0] + 300 and below[1] < above[3]
            assert below[1] >= above[3] - 3 or next_column, (sample.key, above, below)


def test_the_ink_shows_the_words(pages: list[ReadSample]) -> None:
    right, foiled = [], []
    for sample in [s for s in pages if markup_of(s).startswith("<html>")][:REDRAWN]:
        page = pixels(sample.images[0])
        texts = [item for item in items_of(sample) if item.box is not None and item.kind in ("h1", "h2", "p")]
        for item, other in zip(texts, texts[1:] + texts[:1], strict=True):
            assert item.box is not None
            dark = ink(page)[crop(item.box, page)]
            right.append(first_words_likeness(dark, item.words))
            if other.words != item.words:
                foiled.append(first_words_likeness(dark, other.words))
    assert len(right) > 20
    assert np.mean(np.array(right) > 0.7) > 0.95, sorted(right)[:10]
    assert np.mean(np.array(foiled) > 0.7) < 0.1, sorted(foiled)[-10:]


def test_tables_parse_in_both_forms(pages: list[ReadSample]) -> None:
    tables = [item.cells for sample in pages for item in items_of(sample) if item.cells]
    assert len(tables) > 20
    for cells in tables:
        assert cells[0][0] == "Article" and len({len(row) for row in cells}) == 1
        assert all(cell.isdigit() for row in cells[1:] for cell in row[1:])
    assert read_latex("\\begin{tabular}{|c|c|}\n\\hline\na \\& b & 5\\% \\\\ \\hline\n\\end{tabular}") == [
        ["a & b", "5%"]
    ]


def test_a_table_has_as_many_rows_as_it_says(pages: list[ReadSample]) -> None:
    """Counted from the ruled lines in the pixels."""
    seen = 0
    for sample in pages:
        page = pixels(sample.images[0])
        for item in items_of(sample):
            if item.cells is None or item.box is None:
                continue
            dark = ink(page)[crop(item.box, page)]
            lines = np.flatnonzero(dark[:, 2:-3].mean(1) > 0.97)
            rules = 1 + sum(b - a > 2 for a, b in pairwise(lines))
            columns = np.flatnonzero(dark[2:-3].mean(0) > 0.97)
            if len(columns) > 0:  # ruled on all sides
                assert rules == len(item.cells) + 1, (sample.key, rules)
                assert 1 + sum(b - a > 2 for a, b in pairwise(columns)) == len(item.cells[0]) + 1
                seen += 1
            else:
                assert rules == 3
    assert seen > 8


def test_splits_share_no_sentence(pages: list[ReadSample]) -> None:
    def sentences(some: list[ReadSample]) -> set[str]:
        return {w.words for s in some for w in items_of(s) if w.kind in ("p", "li") and len(w.words) > 60}

    train, held_out = sentences(pages[:-20]), sentences(pages[-20:])
    assert held_out and not train & held_out


# --- long documents


@pytest.fixture(scope="module")
def long_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[float, list[ReadSample]]:
    """The same documents with the text of their pages before the questions, and without."""
    return {
        share: built(
            *("long_documents", tmp_path_factory.mktemp("long"), {"train": 14, "held_out": 4}),
            **{"parse_share": share, "document_share": 0.3, "pages": [2, 5], "questions": [4, 8]},
        )
        for share in (1.0, 0.0)
    }


def split_pages(markup: str) -> list[list[Item]]:
    return [
        read_markdown(page.strip("\n"))
        for page in markup.split("<!-- Page ")[1:]
        for page in [page.split(" -->", 1)[1]]
    ]


def answer_of(question: str, pages: list[list[Item]]) -> str:
    """Answered anew, from the parsed text of the pages alone."""
    items = [(item, number) for number, page in enumerate(pages, 1) for item in page]

    def place(label: str) -> int:
        """Where ``Table 2`` or ``Figure 1`` is, or the heading of that name."""
        name = label.removeprefix("the heading “").removesuffix("”")
        kinds = ("h1", "h2") if label.startswith("the heading") else ("p",)
        (found,) = [
            i for i, (item, _) in enumerate(items)
            if item.kind in kinds and (item.words == name or (item.words + " ").startswith(f"{name}. "))
        ]  # fmt: skip
        return found

    def number(what: str) -> int:
        (column, rest), label = what.split(" in ")[0].split(" of "), what.split(" in ")[1]
        table = next(item for item, _ in items[place(label) :] if item.kind == "table")
        assert table.cells is not None
        return int(next(row for row in table.cells if row[0] == rest)[table.cells[0].index(column)])

    if question.startswith("What is the sum of "):
        first, second = question.removeprefix("What is the sum of ").removesuffix("?").split(" and ")
        return str(number(first) + number(second))
    if question.startswith("On which page is "):
        return str(items[place(question.removeprefix("On which page is ").removesuffix("?"))][1])
    if question.startswith("How many "):
        kind = {"tables": "table", "figures": "img"}[question.split()[2]]
        return str(sum(item.kind == kind for item, _ in items))
    label = question.removeprefix("Which heading comes first after ").removesuffix("?")
    return next((item.words for item, _ in items[place(label) :] if item.kind in ("h1", "h2")), "None.")


def test_long_documents_show_their_pages_first_and_answer_from_them(long_pages: dict[float, list[ReadSample]]) -> None:
    with_text, without = long_pages[1.0], long_pages[0.0]
    kinds, sums = set(), 0
    for parsed, bare in zip(with_text, without, strict=True):
        assert [part["type"] for part in parsed.parts].index("text") == len(parsed.images) > 1
        assert parsed.media == bare.media
        if "content" in parsed.body:
            assert len(split_pages(markup_of(parsed))) == len(parsed.images)
            continue
        (_, markup), *questions = parsed.turns
        pages = split_pages(markup)
        assert len(pages) == len(parsed.images)
        assert questions == [(q.strip("\n"), a) for q, a in bare.turns], "the same questions without the text"
        for question, answer in questions:
            assert answer_of(question, pages) == answer, question
            kinds.add(question.split()[0] + question.split()[2])
            sums += question.startswith("What is the sum")
    assert sums > 3 and len(kinds) >= 4


def test_pages_of_a_long_document_show_what_is_said_of_them(long_pages: dict[float, list[ReadSample]]) -> None:
    for sample in [s for s in long_pages[1.0] if "content" in s.body][:6]:
        for file, items in zip(sample.images, split_pages(markup_of(sample)), strict=True):
            page = pixels(file)
            dark = ink(page)
            assert dark[: dark.shape[0] // 2].any()
            for item in items:
                if item.kind == "table" and item.box is not None:
                    lines = np.flatnonzero(dark[crop(item.box, page)][:, 2:-3].mean(1) > 0.97)
                    assert 1 + sum(b - a > 2 for a, b in pairwise(lines)) in (3, len(item.cells or []) + 1)
