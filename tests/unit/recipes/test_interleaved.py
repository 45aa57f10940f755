"""Interleaved samples keep the manual's order and leave out what stands on every page; read back by text search."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

import pygame
import pytest
import yaml
from PIL import Image

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes.build import build
from megatron_qwen3vl.recipes.html_blocks import Shown, Words, read_page
from megatron_qwen3vl.recipes.interleaved import InterleavedSettings, Manual, find_manual, starts
from megatron_qwen3vl.recipes.reader import ReadSample, read_samples

RECIPE = Path(__file__).parents[3] / "data_recipes" / "domains" / "interleaved.yaml"
MANUAL = Path(pygame.__file__).parent / "docs" / "generated"


def check(samples: list[ReadSample], manual: Path) -> int:
    """Every text and picture of every sample comes, in order, out of one place of the manual. The number of pictures.

    The pages are taken apart by regular expressions, unlike in the builder: tags are cut out, pictures become a mark.
    """
    sources = "\0".join(_flat(page) for page in sorted([*manual.rglob("*.html"), *manual.rglob("*.xhtml")]))
    files: dict[bytes, str] = {}
    for file in sorted(file for file in manual.rglob("*") if file.suffix in (".png", ".jpg", ".webp")):
        known = files.setdefault(file.read_bytes(), file.name)
        sources = sources.replace(f"\1{file.name}\1", f"\1{known}\1")  # the same picture under two names
    shown = 0
    for sample in samples:
        wanted = []
        for part in sample.parts:
            if part["type"] == "text":
                wanted += [re.sub(r"\W+", "", line) for line in part["text"].split("\n")]
            else:
                wanted.append(f"\1{files[sample.media[part['image']]]}\1")
                shown += 1
        wanted = [words for words in wanted if words]
        begins = [m.start() for m in re.finditer(re.escape(wanted[0]), sources)]
        reached = max((_follow(sources, begin, wanted) for begin in begins), default=0)
        assert reached == len(wanted), f"{sample.key}: {wanted[reached][:80]!r} is not where it should be"
    return shown


def _flat(page: Path) -> str:
    text = re.sub(r"(?s)<(script|style|head)\b.*?</\1>|<!--.*?-->", "", page.read_text(errors="replace"))
    text = re.sub(r'(?s)<img\b[^>]*?src="([^"]*)"[^>]*>', lambda m: f"\1{m[1].split('/')[-1]}\1", text)
    return "".join(_letters(piece) if i % 2 == 0 else f"\1{piece}\1" for i, piece in enumerate(text.split("\1")))


def _letters(text: str) -> str:
    return re.sub(r"\W+", "", html.unescape(re.sub(r"<[^>]*>", "", text)))


def _follow(sources: str, begin: int, wanted: list[str]) -> int:
    """How many of ``wanted`` stand one after another from ``begin`` on."""
    place = begin
    for number, words in enumerate(wanted):
        found = sources.find(words, place, place + 30_000)
        if found < 0:  # the next page of the same split; pages of the other one may lie between
            found = sources.find(words, max(sources.find("\0", place), place))
        if found < 0:
            return number
        place = found + len(words)
    return len(wanted)


def test_samples_follow_the_manual(tmp_path: Path) -> None:
    tree = yaml.safe_load(RECIPE.read_text())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    build(tmp_path / "recipe.yaml", tmp_path / "out")
    train, held_out = (list(read_samples(tmp_path / "out" / split)) for split in ("train", "held_out"))
    assert len(train) > 30 and len(held_out) > 5
    assert check(train + held_out, MANUAL) > 60
    files = [{file for sample in some for file in sample.media.values()} for some in (train, held_out)]
    assert not files[0] & files[1], "the splits share an image"
    for sample in train + held_out:
        words = "".join(part["text"] for part in sample.parts if part["type"] == "text")
        assert not re.search(r"Most useful stuff|Edit on GitHub|Reference Index|© Copyright|¶", words), sample.key
        assert 200 <= len(words) <= 8000 and 1 <= len(sample.images) <= 4
        assert sample.body["domain"] == "interleaved"


PAGE = """<html><head><title>No</title></head><body><nav>Home</nav><div class="header">Top</div>
<div role="main"><h1>Cats &amp; dogs<a class="headerlink">¶</a></h1><p>They are
 <b>an</b>imals.</p><img src="cat.png"><ul><li>one<li><p>two</p></li></ul><img src="tiny.png"/><img src="http://x/y.png">
<pre>a = 1
  b</pre><script>no()</script><p>End</div><div class="footer">Bottom</div></body></html>"""


def test_a_page_in_reading_order_without_its_surroundings(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(PAGE)
    Image.new("RGB", (64, 48)).save(tmp_path / "cat.png")
    blocks = read_page(tmp_path / "page.html")
    assert [b.text if isinstance(b, Words) else b.file.name for b in blocks] == [
        *("# Cats & dogs", "They are animals.", "cat.png", "- one", "- two", "```\na = 1\n  b\n```", "End")
    ]
    assert isinstance(blocks[2], Shown)
    settings = InterleavedSettings((), 1, (1, 500), (1, 2), 500)
    assert starts([], settings) == []


def test_a_manual_that_is_not_there_is_named(tmp_path: Path) -> None:
    for manual, said in (
        (Manual("python", "no_such_package", "docs"), "no Python package no_such_package"),
        (Manual("path", str(tmp_path), "docs"), "holds no folder docs"),
        (Manual("web", "x", "y"), "choose python, debian or path"),
    ):
        with pytest.raises(UserError, match=said):
            find_manual(manual)


if __name__ == "__main__":  # python test_interleaved.py SHARDS MANUAL: the same check on a larger manual
    print(check(list(read_samples(Path(sys.argv[1]))), Path(sys.argv[2])), "pictures and all texts found in order")
