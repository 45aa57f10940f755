"""PDF files: the pages as images, then the text of their text layer, as ``recipes.documents`` and ``long_documents``.

The pages of one file go to one split. PDFium is a C++ library that reads what others made: import files that you do not
trust on a machine, or as a user, that may lose the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.files import find_files, sample, stem_of
from megatron_qwen3vl.importers.frame import Entry, Format, Made, Unwanted, clean_key, needs, option
from megatron_qwen3vl.importers.pdf_text import page_text
from megatron_qwen3vl.recipes import record
from megatron_qwen3vl.recipes.record import Part, document, text

IMAGES = {"png": record.png, "jpg": record.jpeg}
POINTS_PER_INCH = 72
ONE_PAGE, MANY_PAGES = "document_parsing", "long_document"


@dataclass(frozen=True)
class PdfSettings:
    dpi: float = option(144.0, "pixels an inch of the pages' images")
    max_side: int = option(4096, "most pixels of an image's longer side; a larger page has fewer an inch")
    pages: int | None = option(8, "most pages of a sample; a longer file gives several; null: a file is one sample")
    image: str = option("png", "png, or jpg (quality 90)")
    min_chars: int = option(1, "leave out samples with a shorter text, such as scans without a text layer")
    domain: str | None = option(None, f"the samples' domain; null: {ONE_PAGE} for one page, {MANY_PAGES} for more")

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.dpi <= 2400:
            problems.append(f"dpi: {self.dpi} must be from 1 to 2400")
        if not 32 <= self.max_side <= 9000:
            problems.append(f"max_side: {self.max_side} must be from 32 to 9000")
        if self.pages is not None and self.pages < 1:
            problems.append(f"pages: {self.pages} must be at least 1, or null")
        if self.image not in IMAGES:
            problems.append(f"image: {self.image} is neither of {', '.join(IMAGES)}")
        if problems:
            raise UserError(problems)


def read(source: Path, settings: PdfSettings) -> Iterator[Entry]:
    needs("pypdfium2", "PDF")
    import pypdfium2

    files = find_files(source, (".pdf",), "PDF files")
    for number, path in enumerate(files):
        stem = clean_key(stem_of(path, source))
        try:
            opened = pypdfium2.PdfDocument(path)
        except pypdfium2.PdfiumError as error:
            reason = f"{path.name}: {error}"
            yield Entry(stem, partial(_unreadable, reason), group=stem, part=(number + 1) / len(files))
            continue
        try:
            count = len(opened)
            step = settings.pages or max(count, 1)
            for first in range(0, max(count, 1), step):
                pages = range(first, min(first + step, count))
                make = partial(_make, opened, pages, path.name, settings)
                part = (number + (first + len(pages)) / max(count, 1)) / len(files)
                yield Entry(f"{stem}_p{first + 1:05d}", make, group=stem, part=part)
        finally:
            opened.close()


def _unreadable(reason: str) -> Made:
    raise BadSample(reason)


def _make(opened: Any, pages: range, name: str, settings: PdfSettings) -> Made:
    """``opened``: a pypdfium2.PdfDocument."""
    import pypdfium2

    if not pages:
        raise BadSample(f"{name} has no pages")
    media: dict[str, bytes] = {}
    texts: list[str] = []
    for number, place in enumerate(pages):
        try:
            pixels, words = _page(opened, place, settings)
        except pypdfium2.PdfiumError as error:
            raise BadSample(f"{name}, page {place + 1}: {error}") from None
        media[f"{number}.{settings.image}"] = IMAGES[settings.image](pixels)
        texts.append(words)
    if sum(map(len, texts)) < settings.min_chars:
        raise Unwanted("min_chars")
    if len(texts) > 1:
        # as recipes.long_documents: a page's number is its place among the images
        texts = [f"<!-- Page {number} -->\n\n{words}".rstrip() for number, words in enumerate(texts, 1)]
    domain = settings.domain or (ONE_PAGE if len(texts) == 1 else MANY_PAGES)
    shown: list[Part] = [record.image(each) for each in media]
    return sample(document([*shown, text("\n\n".join(texts))], domain), media)


def _page(opened: Any, place: int, settings: PdfSettings) -> tuple[np.ndarray, str]:
    """Pixels, uint8 [height, width, 3], and the text."""
    page = opened[place]
    try:
        scale = settings.dpi / POINTS_PER_INCH
        longer = max(page.get_size())
        if longer * scale > settings.max_side:
            scale = settings.max_side / longer
        bitmap = page.render(scale=scale, rev_byteorder=True)
        # a copy: the bitmap's memory goes with it
        pixels = np.ascontiguousarray(bitmap.to_numpy()[:, :, :3]).copy()
        bitmap.close()
        textpage = page.get_textpage()
        words = page_text(textpage)
        textpage.close()
        return pixels, words
    finally:
        page.close()


PDF = Format("pdf", "PDF files: pages as images, then their text", "a .pdf file, or a folder of them", PdfSettings,
             read)  # fmt: skip
