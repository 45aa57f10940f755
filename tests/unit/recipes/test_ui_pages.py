"""UI pages: the HTML parses, and a small renderer of its own makes the same picture out of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from built import built
from PIL import Image, ImageColor, ImageDraw, ImageFont
from seen import find_words, pixels

from megatron_qwen3vl.recipes.reader import ReadSample


class Page(HTMLParser):
    """Boxes in the order of the document: style, and the text inside."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.body: dict[str, str] = {}
        self.boxes: list[tuple[dict[str, str], str]] = []
        self.open: list[str] = []
        self.feed(code)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if "style" in dict(attrs):
            self.boxes.append((dict(rule.split(":") for rule in str(dict(attrs)["style"]).split(";")), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            if (rule := re.search(r"body\{(.+?)\}", data)) is not None:
                self.body = dict(part.split(":") for part in rule.group(1).split(";"))
        elif data.strip():
            style, text = self.boxes[-1]
            self.boxes[-1] = (style, text + data)

    def drawn(self) -> np.ndarray:
        font = ImageFont.load_default(10)
        picture = Image.new("RGB", (px(self.body["width"]), px(self.body["height"])), self.body["background"])
        draw = ImageDraw.Draw(picture)
        for style, text in self.boxes:
            left, top, width, height = (px(style[name]) for name in ("left", "top", "width", "height"))
            picture.paste(ImageColor.getrgb(style["background"]), (left, top, left + width, top + height))
            if text:
                assert px(style["line-height"]) == height
                centred = style.get("text-align") == "center"
                x = left + width // 2 - round(font.getlength(text) / 2) if centred else left + px(style["text-indent"])
                draw.text((x, top + height // 2), text, style["color"], font, anchor="lm")
        return np.asarray(picture)


def px(value: str) -> int:
    assert value.endswith("px")
    return int(value[:-2])


def wrong(sample: ReadSample, code: str) -> bool:
    try:
        page = Page(code)
    except AssertionError:
        return True
    return not np.array_equal(page.drawn(), pixels(sample.images[0]))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[ReadSample]:
    return built("ui_pages", tmp_path_factory.mktemp("ui_pages"))


def test_the_html_draws_the_picture(samples: list[ReadSample]) -> None:
    assert len(samples) == 200
    assert not [sample.key for sample in samples if wrong(sample, sample.turns[0][1])]
    tags = {tag for s in samples for tag in re.findall(r"<(\w+) style", s.turns[0][1])}
    assert tags == {"header", "h1", "a", "section", "h2", "p", "button"}


def test_texts_can_be_read_where_they_stand(samples: list[ReadSample]) -> None:
    for sample in samples[:20]:
        picture = pixels(sample.images[0])
        for style, text in Page(sample.turns[0][1]).boxes:
            if text and px(style["width"]) > 30:
                middle = px(style["top"]) + px(style["height"]) // 2
                assert any(abs(y - middle) <= 3 for _, y in find_words(picture, text, 10, 0.8)), text


def test_false_html_is_found(samples: list[ReadSample]) -> None:
    for sample in samples[:50]:
        code = sample.turns[0][1]
        lies = [
            re.sub(r"top:(\d+)px;(?=.*<h2)", lambda m: f"top:{int(m[1]) + 1}px;", code, count=1, flags=re.S),
            re.sub(r"(<section.*?background:#)..", r"\g<1>7f", code, count=1),
            code.replace("</h1>", "s</h1>"),
            code.replace("</section>", "", 1),
        ]
        assert all(wrong(sample, lie) for lie in lies)
