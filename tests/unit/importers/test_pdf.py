"""PDF files: PDFium itself, used plainly, gives the same pixels; the text is what the page was written with."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from PIL import Image
from shard_helpers import source, tokenizer
from text_and_media_sets import make_pdf, named, page_of, run, webdataset_samples, write_pdfs

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.pdf_text import Line, to_markdown

PAGE = """\
# Chapter {0}

The first line of a paragraph that has a hyphen at its end and ends on page {0}.

- one
- two

```
$ ls
  $ cd x
```"""


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_page_is_its_image_and_its_text(tmp_path: Path) -> None:
    write_pdfs(tmp_path / "in", [1])
    run("pdf", tmp_path / "in", tmp_path / "out", "held_out=0", "dpi=100")
    (sample,) = webdataset_samples(tmp_path / "out" / "train").values()
    page = pypdfium2.PdfDocument(tmp_path / "in" / "paper 0.pdf")[0]
    expected = page.render(scale=100 / 72).to_pil().convert("RGB")
    assert expected.size == (417, 556)  # 300 x 400 points
    assert (pixels(sample["0.png"]) == np.asarray(expected)).all()
    assert sample["json"] == {
        "content": [{"type": "image", "image": "0.png"}, {"type": "text", "text": PAGE.format(1)}],
        "domain": "document_parsing",
    }
    words = page.get_textpage().get_text_range().replace("\ufffe", "").split()  # PDFium's own order
    assert re.sub(r"[#\n`]", " ", sample["json"]["content"][1]["text"]).split() == words


def test_pages_go_into_samples_of_k_pages_and_one_split(tmp_path: Path) -> None:
    write_pdfs(tmp_path / "in", [5, 1, 2])
    train, held_out = run("pdf", tmp_path / "in", tmp_path / "out", "held_out=0.5", "pages=2", "dpi=40", "image=jpg")
    splits = {split: webdataset_samples(tmp_path / "out" / split) for split in ("train", "held_out")}
    files = {s: {key.rsplit("_p", 1)[0] for key in found} for s, found in splits.items()}
    assert not files["train"] & files["held_out"] and train.mark.samples + held_out.mark.samples == 3 + 1 + 1
    both = splits["train"] | splits["held_out"]
    (first, second, third) = (both[key] for key in sorted(key for key in both if key.startswith("paper_0")))
    assert [part["type"] for part in first["json"]["content"]] == ["image", "image", "text"]
    text = f"<!-- Page 1 -->\n\n{PAGE.format(3)}\n\n<!-- Page 2 -->\n\n{PAGE.format(4)}"
    assert second["json"]["content"][2]["text"] == text and second["json"]["domain"] == "long_document"
    assert len(third["json"]["content"]) == 2 and third["json"]["domain"] == "document_parsing"
    page = pypdfium2.PdfDocument(tmp_path / "in" / "paper 0.pdf")[3]
    expected = np.asarray(page.render(scale=40 / 72).to_pil().convert("RGB")).astype(int)
    assert np.abs(pixels(second["1.jpg"]).astype(int) - expected).mean() < 3
    run("pdf", tmp_path / "in", tmp_path / "whole", "held_out=0", "pages=null", "dpi=40")
    ours = source(tmp_path, "whole/train")
    assert len(ours) == 3 and len(ours.read(0, True).grids) == 5
    assert "ends on page 5." in tokenizer().decode(ours.read(0, False).input_ids.tolist())


def test_a_huge_page_is_made_smaller(tmp_path: Path) -> None:
    (tmp_path / "poster.pdf").write_bytes(make_pdf([page_of(1)], size=(14_000, 7_000)))
    run("pdf", tmp_path / "poster.pdf", tmp_path / "out", "held_out=0", "max_side=512", "dpi=600")
    (sample,) = webdataset_samples(tmp_path / "out" / "train").values()
    assert pixels(sample["0.png"]).shape == (256, 512, 3)


def test_bad_files_are_named_and_scans_not_wanted(tmp_path: Path) -> None:
    write_pdfs(tmp_path / "in", [1])
    (tmp_path / "in" / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing that follows")
    (tmp_path / "in" / "scan.pdf").write_bytes(make_pdf([[]]))
    (tmp_path / "in" / "none.pdf").write_bytes(make_pdf([]))
    (summary,) = run("pdf", tmp_path / "in", tmp_path / "out", "held_out=0", "dpi=30")
    assert len(webdataset_samples(tmp_path / "out" / "train")) == 1 and summary.mark.unwanted == {"min_chars": 1}
    reasons = named(summary)
    assert "broken.pdf" in reasons["broken"] and any("none" in key for key in reasons) and len(reasons) == 2
    with pytest.raises(UserError) as error:
        run("pdf", tmp_path / "in", tmp_path / "2", "dpi=0", "image=gif", "pages=0", "max_side=1")
    assert [problem.split(":")[0] for problem in error.value.problems] == ["dpi", "max_side", "pages", "image"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no PDF files"):
        run("pdf", tmp_path / "empty", tmp_path / "3")


def test_markdown_of_lines() -> None:
    """Columns, indents, hyphens that break a line, headings of two lines, lists, code."""
    body = [(300, "Text that is bro\x02"), (288, "ken by a hyphen and"), (276, "goes on."), (252, "A new paragraph.")]
    lines = [Line("A long title", 24, 30, 380), Line("of two lines", 24, 30, 352), Line("Section", 14, 30, 320)]
    lines += [Line(words, 10, 30, base) for base, words in body]
    lines += [Line("Indented one.", 10, 42, 240), Line("• first", 10, 30, 228), Line("goes on", 10, 40, 216)]
    lines += [Line("2. second", 10, 30, 204), Line("if x:", 10, 30, 192, 6.0), Line("y", 10, 54, 170, 6.0)]
    lines += [Line("Next column", 10, 200, 300), Line("\x02", 10, 200, 280)]
    assert to_markdown(lines).split("\n\n") == [
        "# A long title of two lines", "## Section", "Text that is broken by a hyphen and goes on.", "A new paragraph.",
        "Indented one.", "- first goes on\n2. second", "```\nif x:\n    y\n```", "Next column",
    ]  # fmt: skip
    assert to_markdown([]) == ""
