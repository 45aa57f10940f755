"""Text to read in many scripts: lines of real words, shaped by Pillow's raqm, with a box for each word and line.

Coarse samples ask for the whole text, fine ones for words or lines with their boxes, for what stands in a box, or where
a word is. Boxes are whole thousandths of the picture (``boxes``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes import fonts
from megatron_qwen3vl.recipes.boxes import Box, box_in_thousandths, objects_json
from megatron_qwen3vl.recipes.materials import debian_folder
from megatron_qwen3vl.recipes.photos import PHOTOS, load_photo, random_crop
from megatron_qwen3vl.recipes.record import Record, conversation, document, image, jpeg, png, text
from megatron_qwen3vl.recipes.splits import belongs

READ = "Read all the text in the image."
WORDS = "Locate every word in the image. Answer with bbox_2d and text_content in JSON."
LINES = "Locate every line of text in the image. Answer with bbox_2d and text_content in JSON."
REGION = "What does the text inside the box {} say?"
LOCATE = "Where is the word “{}”? Answer with bbox_2d and text_content in JSON."
FORMS = ("document", "read", "words", "lines", "region", "locate")
DOMAIN = "ocr"
FAINTEST = 64  # of 255: less ink than that does not stretch a word's box


@dataclass(frozen=True)
class OcrSettings:
    scripts: tuple[str, ...]  # names as in ``fonts.SCRIPTS``; one that cannot be drawn here is left out, with a message
    canvases: tuple[tuple[int, int], ...]  # width, height in pixels; one is drawn for each picture
    size: tuple[int, int]  # smallest and largest font size in pixels
    second_script_share: float  # pictures whose lines are of two scripts
    number_share: float  # of the words, how many are numbers
    photo_share: float  # over a pale photograph instead of a flat ground
    forms: Mapping[str, float]  # shares of FORMS; they need not add up to one
    debian_packages: tuple[str, ...]  # with fonts, fetched when they are not there yet


@dataclass(frozen=True)
class Word:
    text: str
    box: Box  # in pixels, around its ink


@dataclass(frozen=True)
class Writing:
    """``lines``: words in the order of reading, which may run leftwards. ``pixels`` uint8 [height, width, 3]."""

    pixels: np.ndarray
    lines: tuple[tuple[Word, ...], ...]
    over_photo: bool

    @property
    def text(self) -> str:
        return "\n".join(said(line) for line in self.lines)


def said(line: Sequence[Word]) -> str:
    return " ".join(word.text for word in line)


def around(line: Sequence[Word]) -> Box:
    left, top, right, bottom = zip(*(word.box for word in line), strict=True)
    return min(left), min(top), max(right), max(bottom)


def usable_scripts(settings: OcrSettings, others: tuple[Path, ...]) -> list[fonts.Script]:
    """Raises UserError: a script has no such name, or none can be drawn here."""
    unknown = [name for name in settings.scripts if name not in fonts.SCRIPTS]
    if unknown:
        raise UserError(f"settings.scripts: {unknown[0]}: unknown; there are {', '.join(fonts.SCRIPTS)}")
    reasons = {name: fonts.why_not(fonts.SCRIPTS[name], others) for name in settings.scripts}
    for reason in filter(None, reasons.values()):
        print(f"left out: {reason}", file=sys.stderr)
    usable = [fonts.SCRIPTS[name] for name, reason in reasons.items() if reason is None]
    if not usable:
        raise UserError("settings.scripts: none of them can be drawn here; see the lines above")
    return usable


def write(
    rng: np.random.Generator, settings: OcrSettings, scripts: Sequence[fonts.Script], others: tuple[Path, ...]
) -> tuple[np.ndarray, tuple[tuple[Word, ...], ...]]:
    """Ink 0..255 uint8 [height, width], and the lines: as many as fit, each in one font and size."""
    width, height = settings.canvases[int(rng.integers(len(settings.canvases)))]
    ink = Image.new("L", (width, height))
    lines: list[tuple[Word, ...]] = []
    top, size = 4, int(rng.integers(settings.size[0], settings.size[1] + 1))
    while True:
        script = scripts[int(rng.integers(len(scripts)))]
        faces = fonts.faces_of(script, others)
        font = fonts.typeface(faces[int(rng.integers(len(faces)))], size)
        line_height = sum(font.getmetrics())
        if top + line_height + 4 > height and lines:
            return np.asarray(ink), tuple(lines)
        line = _write_line(rng, ink, script, font, top, settings.number_share)
        if line:
            lines.append(line)
        if lines:
            top += line_height + int(rng.integers(2, 2 + size // 2))
        else:
            size -= 1  # not one word fits


def _write_line(
    rng: np.random.Generator,
    ink: Image.Image,
    script: fonts.Script,
    font: ImageFont.FreeTypeFont,
    top: int,
    numbers: float,
) -> tuple[Word, ...]:
    """Words from the starting edge on until one does not fit; ``ink`` is drawn into."""
    known, drawable = fonts.words_of(script), fonts.characters(Path(str(font.path)))
    pad, space = round(font.size), font.getlength(" ")
    pen = int(rng.integers(4, max(5, ink.width // 4)))
    wanted = int(rng.integers(1, 9))
    line: list[Word] = []
    while len(line) < wanted:
        word = _number(rng) if rng.random() < numbers else known[int(rng.integers(len(known)))]
        # Before the first word nothing says that a number is part of text that runs leftwards, and after an Arabic one
        # a per cent sign changes sides: neither is drawn, so that a line reads as Unicode's rules would set it.
        if not drawable.issuperset(word) or (script.leftwards and ("%" in word or word[0].isascii() and not line)):
            continue
        mask, advance = fonts.word_mask(word, font)
        box = mask.point(lambda value: 255 * (value >= FAINTEST)).getbbox()
        if box is None or pen + advance + 4 > ink.width:
            break
        x = round(ink.width - pen - advance if script.leftwards else pen) - pad
        y = top - pad
        placed = (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
        if placed[0] < 0 or placed[1] < 0 or placed[2] > ink.width or placed[3] > ink.height:
            break
        ink.paste(255, (x, y), mask)
        line.append(Word(word, placed))
        pen += round(advance + space)
    return tuple(line)


def _number(rng: np.random.Generator) -> str:
    value = int(rng.integers(0, 10 ** int(rng.integers(1, 6))))
    return (f"{value}", f"{value:,}", f"{value / 10:.1f}%", f"{value / 100:.2f}")[int(rng.integers(4))]


def _ground(rng: np.random.Generator, width: int, height: int, photo: bool, held_out: bool) -> np.ndarray:
    """Pale, float32 [height, width, 3] between 165 and 255, so that dark ink is read everywhere."""
    if not photo:
        return np.broadcast_to(rng.integers(200, 256, 3), (height, width, 3)).astype(np.float32)
    pixels = random_crop(rng, load_photo(str(rng.choice(list(PHOTOS))), held_out), width, height)
    return 165 + pixels.astype(np.float32) * (90 / 255)


def draw(
    rng: np.random.Generator,
    settings: OcrSettings,
    scripts: Sequence[fonts.Script],
    others: tuple[Path, ...],
    held_out: bool,
) -> Writing:
    while True:
        count = 2 if len(scripts) > 1 and rng.random() < settings.second_script_share else 1
        picked = [scripts[int(i)] for i in rng.choice(len(scripts), count, replace=False)]
        ink, lines = write(rng, settings, picked, others)
        writing = "\n".join(said(line) for line in lines)
        if belongs(writing, held_out):
            break
    photo = bool(rng.random() < settings.photo_share)
    ground = _ground(rng, ink.shape[1], ink.shape[0], photo, held_out)
    colour = rng.integers(0, 90, 3).astype(np.float32)
    alpha = ink[..., None].astype(np.float32) / 255
    return Writing(np.rint(ground * (1 - alpha) + colour * alpha).astype(np.uint8), lines, photo)


def build(settings: OcrSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    """Raises UserError: a form or script is unknown, or no script can be drawn."""
    unknown = [form for form in settings.forms if form not in FORMS]
    if unknown:
        raise UserError(f"settings.forms.{unknown[0]}: unknown; there are {', '.join(FORMS)}")
    folders = [debian_folder(package) for package in settings.debian_packages]
    files = (path for folder in folders for path in folder.rglob("*"))
    others = tuple(sorted(path for path in files if path.suffix in (".ttf", ".otf", ".ttc")))
    scripts = usable_scripts(settings, others)
    shares = np.array([settings.forms.get(form, 0.0) for form in FORMS])
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        writing = draw(rng, settings, scripts, others, held_out)
        name, file = ("0.jpg", jpeg(writing.pixels)) if writing.over_photo else ("0.png", png(writing.pixels))
        form = FORMS[int(rng.choice(len(FORMS), p=shares / shares.sum()))]
        if form == "document":
            body = document([image(name), text(writing.text)], DOMAIN)
        else:
            question, answer = _ask(rng, form, writing)
            body = conversation([([image(name), text(question)], answer)], DOMAIN)
        yield Record(f"{number:06d}", body, {name: file})


def _ask(rng: np.random.Generator, form: str, writing: Writing) -> tuple[str, str]:
    size = (writing.pixels.shape[1], writing.pixels.shape[0])
    words = [word for line in writing.lines for word in line]

    def located(box: Box, content: str) -> dict[str, object]:
        return {"bbox_2d": list(box_in_thousandths(box, size)), "text_content": content}

    if form == "read":
        return READ, writing.text
    if form == "words":
        return WORDS, objects_json([located(word.box, word.text) for word in words])
    if form == "lines":
        return LINES, objects_json([located(around(line), said(line)) for line in writing.lines])
    if form == "region":
        parts = [(word.box, word.text) for word in words] + [(around(line), said(line)) for line in writing.lines]
        box, content = parts[int(rng.integers(len(parts)))]
        return REGION.format(list(box_in_thousandths(box, size))), content
    texts = [word.text for word in words]
    once = [word for word in words if texts.count(word.text) == 1] or words
    word = once[int(rng.integers(len(once)))]
    return LOCATE.format(word.text), objects_json([located(w.box, w.text) for w in words if w.text == word.text])
