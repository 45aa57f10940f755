"""The text layer of a PDF page as plain Markdown: headings by size, paragraphs by the gaps between lines, lists,
code by its font.

Lines come in the order in which the page's text is stored; tables and formulas are not found.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

# A line this much larger than the page's usual text is a heading of that level.
HEADINGS = ((1.6, "# "), (1.3, "## "), (1.15, "### "))
_SAME_SIZE = 0.08  # relative difference of sizes inside a paragraph
_WIDER_PITCH = 1.35  # times the usual distance of two lines begins a paragraph
_INDENT = 0.8  # of a line's height
_HYPHEN = "\x02"  # what PDFium gives for a hyphen that only breaks a line
_MONO = re.compile(r"mono|courier|typewriter|consol|cmtt", re.IGNORECASE)
_FIXED_PITCH = 1  # of a font descriptor's flags (ISO 32000-1, table 123)
_LONGEST_NAME = 128
_BULLET = re.compile(r"^[•‣▪●◦–\-*]\s+")
_NUMBERED = re.compile(r"^\d{1,3}[.)]\s+")


@dataclass(frozen=True)
class Line:
    """``size``: the font's height, ``left`` and ``base`` (of its baseline, from below), all in points. ``step``: the
    width of every character, of a font where it is the same; else 0."""

    words: str
    size: float
    left: float
    base: float
    step: float = 0.0


def page_text(textpage: Any) -> str:
    """``textpage``: a pypdfium2.PdfTextPage."""
    return to_markdown(list(lines_of(textpage)))


def lines_of(textpage: Any) -> Iterator[Line]:
    """Lines that hold more than spaces."""
    import pypdfium2.raw as pdfium

    words: list[str] = []
    first, last = None, 0
    count = textpage.count_chars()
    for place in range(count + 1):
        letter = chr(pdfium.FPDFText_GetUnicode(textpage, place)) if place < count else "\n"
        if letter not in "\r\n":
            if not letter.isspace() and letter != _HYPHEN:
                first, last = place if first is None else first, place
            words.append(letter)
            if letter != _HYPHEN:  # stands for the end of the line too
                continue
        if first is not None:
            yield _line("".join(words), textpage, first, last)
        words, first = [], None


def _line(words: str, textpage: Any, first: int, last: int) -> Line:
    """``first`` and ``last``: its first and last visible character."""
    import pypdfium2.raw as pdfium

    box, x, base = pdfium.FS_RECTF(), ctypes.c_double(), ctypes.c_double()
    pdfium.FPDFText_GetLooseCharBox(textpage, first, ctypes.byref(box))
    pdfium.FPDFText_GetCharOrigin(textpage, first, ctypes.byref(x), ctypes.byref(base))
    fixed = _has_equal_widths(textpage, first) and _has_equal_widths(textpage, last)
    # Characters beyond U+FFFF come as the two halves of UTF-16; half a one is no text.
    words = words.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")
    size, step = abs(box.top - box.bottom), abs(box.right - box.left) if fixed else 0.0
    return Line(words.strip(), size, x.value, base.value, step)


def _has_equal_widths(textpage: Any, place: int) -> bool:
    """Whether the character's font says so, by its flags or its name."""
    import pypdfium2.raw as pdfium

    name, flags = ctypes.create_string_buffer(_LONGEST_NAME), ctypes.c_int()
    pdfium.FPDFText_GetFontInfo(textpage, place, name, _LONGEST_NAME, ctypes.byref(flags))
    return bool(flags.value & _FIXED_PITCH or _MONO.search(name.value.decode("utf-8", "replace")))


def to_markdown(lines: Sequence[Line]) -> str:
    lines = [line for line in lines if line.words.strip(_HYPHEN)]
    if not lines:
        return ""
    usual = _usual_size(lines)
    pitches = [a.base - b.base for a, b in zip(lines, lines[1:], strict=False) if _alike(a, b) and a.base > b.base]
    pitch = median(pitches) if pitches else 0.0
    blocks: list[list[Line]] = []
    for line in lines:
        if blocks and _goes_on(blocks[-1], line, pitch, usual):
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return "".join(_between(a, b) + _block(b, usual) for a, b in zip([None, *blocks], blocks, strict=False))


def _between(last: Sequence[Line] | None, block: Sequence[Line]) -> str:
    """Items of one list stand on lines of their own, everything else has an empty line between."""
    if last is None:
        return ""
    return "\n" if _is_item(last[0]) and _is_item(block[0]) else "\n\n"


def _is_item(line: Line) -> bool:
    return not line.step and bool(_BULLET.match(line.words) or _NUMBERED.match(line.words))


def _usual_size(lines: Sequence[Line]) -> float:
    """The median over characters."""
    sizes = sorted((line.size, len(line.words)) for line in lines)
    half, seen = sum(count for _, count in sizes) / 2, 0
    for size, count in sizes:
        seen += count
        if seen >= half:
            return size
    return sizes[-1][0]


def _alike(a: Line, b: Line) -> bool:
    return abs(a.size - b.size) <= _SAME_SIZE * max(a.size, b.size)


def _goes_on(block: Sequence[Line], line: Line, pitch: float, usual: float) -> bool:
    """Whether ``line`` belongs to the paragraph before it."""
    last = block[-1]
    if last.step and line.step:  # code: everything down to the next paragraph
        return last.base > line.base
    if not _alike(last, line) or bool(last.step) != bool(line.step) or _is_item(line):
        return False
    if last.words.endswith(_HYPHEN):
        return True
    step = last.base - line.base
    # a heading has its own, wider, pitch
    if step <= 0 or step > _WIDER_PITCH * max(pitch, 0.0 if _level(line, usual) == "" else 1.3 * line.size):
        return False
    return _is_item(block[0]) or line.left - last.left < _INDENT * line.size


def _level(line: Line, usual: float) -> str:
    return next((mark for factor, mark in HEADINGS if line.size >= factor * usual), "")


def _block(block: Sequence[Line], usual: float) -> str:
    if block[0].step:
        return _code(block)
    words = block[0].words
    for line in block[1:]:
        words = words.removesuffix(_HYPHEN) + line.words if words.endswith(_HYPHEN) else f"{words} {line.words}"
    words = words.removesuffix(_HYPHEN)
    level = _level(block[0], usual)
    return level + words if level else _BULLET.sub("- ", words, count=1)


def _code(block: Sequence[Line]) -> str:
    """Lines as they are, with their indents."""
    left = min(line.left for line in block)
    lines = [" " * round((line.left - left) / line.step) + line.words.replace(_HYPHEN, "-") for line in block]
    return "\n".join(["```", *lines, "```"])
