"""An HTML page -> its texts and images in reading order, without what surrounds them on every page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_INLINE = {"a", "abbr", "b", "bdi", "cite", "code", "em", "i", "img", "kbd", "label", "q", "s", "samp", "small", "span",
           "strong", "sub", "sup", "tt", "u", "var", "wbr"}  # fmt: skip
_LEFT_OUT = {"button", "footer", "form", "head", "nav", "script", "style", "svg", "template", "title"}
# classes and roles by which Sphinx, DocBook and their like mark what is not the text
_BOILERPLATE = {"breadcrumb", "contentinfo", "contents", "footer", "header", "headerlink", "navfooter", "navheader",
                "navigation", "related", "search", "sidebar", "sphinxsidebar", "toc", "toctree-wrapper"}  # fmt: skip
_MAIN_ROLE = "main"
_EDIT_LINKS = re.compile(r"Edit on \w+|View page source|¶")


@dataclass(frozen=True)
class Words:
    text: str
    heading: bool


@dataclass(frozen=True)
class Shown:
    file: Path


Block = Words | Shown


def read_page(path: Path) -> list[Block]:
    """The blocks inside the element with the role ``main``, or of the whole body where there is none."""
    reader = _Reader(path.parent)
    reader.feed(path.read_text(encoding="utf-8", errors="replace"))
    reader.close()
    reader.end_block()
    return reader.main or reader.blocks


class _Reader(HTMLParser):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.blocks: list[Block] = []
        self.main: list[Block] = []
        self._folder = folder
        self._open: list[tuple[str, bool, bool]] = []  # tag, left out, inside main
        self._words: list[str] = []
        self._as = ""  # the tag that the block's words stand in, where it matters

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        _, out, main = self._open[-1] if self._open else ("", False, False)
        marks = {known.get("role", ""), *known.get("class", "").split()}
        out = out or tag in _LEFT_OUT or bool(marks & _BOILERPLATE)
        if tag not in _INLINE:
            self.end_block()
        if tag == "br" and self._as == "pre":
            self._words.append("\n")
        if tag in _VOID:
            if tag == "img" and not out:
                self._image(known.get("src", ""))
            return
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6", "li", "pre") and not out:
            self._as = tag
        self._open.append((tag, out, main or known.get("role") == _MAIN_ROLE or tag == "main"))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _INLINE:
            self.end_block()
        while self._open and any(name == tag for name, _, _ in self._open):
            if self._open.pop()[0] == tag:
                break

    def handle_data(self, data: str) -> None:
        if not (self._open and self._open[-1][1]):
            self._words.append(data)

    def end_block(self) -> None:
        """What was gathered becomes a block, unless it is empty."""
        words = "".join(self._words)
        words = words.strip("\n").rstrip() if self._as == "pre" else " ".join(words.split())
        if words.strip() and not _EDIT_LINKS.fullmatch(words):
            heading = re.fullmatch("h[1-6]", self._as) is not None
            mark = {"li": "- ", "pre": "```\n"}.get(self._as, "#" * int(self._as[1]) + " " if heading else "")
            self._put(Words(mark + words + ("\n```" if self._as == "pre" else ""), heading))
            self._as = ""
        if self._as and not any(tag == self._as for tag, _, _ in self._open):
            self._as = ""
        self._words = []

    def _image(self, source: str) -> None:
        parts = urlsplit(source)
        file = (self._folder / unquote(parts.path)).resolve()
        if not parts.scheme and file.suffix.lower() in IMAGES and file.is_file():
            self.end_block()
            self._put(Shown(file))

    def _put(self, block: Block) -> None:
        self.blocks.append(block)
        if self._open and self._open[-1][2]:
            self.main.append(block)
