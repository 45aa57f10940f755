"""Composed pictures: a real photograph's crop with figures drawn into it; the caption is true by construction."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megatron_qwen3vl.recipes.grammar import DESCRIBE, scene_sentence, thing
from megatron_qwen3vl.recipes.photos import PHOTOS, load_photo, random_crop
from megatron_qwen3vl.recipes.record import Record, conversation, document, image, jpeg, text
from megatron_qwen3vl.recipes.shapes import draw_figures

DULL = ("a", "an", "the", "of", "with", "and", "at", "picture")


@dataclass(frozen=True)
class CaptionSettings:
    canvases: tuple[tuple[int, int], ...]  # width, height in pixels; one is drawn for each picture
    figures: tuple[float, ...]  # shares of pictures with 1, 2, ... figures
    plain_share: float  # pictures without figures, whose caption names the subject only
    conversation_share: float
    alt_text_share: float  # of the conversations, how many give a careless alternative text as a hint
    pages_share: float  # documents of several pictures, each followed by its caption
    pages: int  # pictures of such a document


def scene(rng: np.random.Generator, settings: CaptionSettings, held_out: bool) -> tuple[bytes, str, bool]:
    """One picture as JPEG bytes, its caption, and whether it is a plain photograph."""
    width, height = settings.canvases[int(rng.integers(0, len(settings.canvases)))]
    name = str(rng.choice(list(PHOTOS)))
    pixels = random_crop(rng, load_photo(name, held_out), width, height)
    if rng.random() < settings.plain_share:
        return jpeg(pixels), f"A picture of {PHOTOS[name]}.", True
    count = 1 + int(rng.choice(len(settings.figures), p=settings.figures))
    pixels, figures = draw_figures(rng, pixels, count, held_out)
    return jpeg(pixels), scene_sentence([thing(f.name, f.row, f.column) for f in figures], PHOTOS[name]), False


def alt_text(rng: np.random.Generator, caption: str) -> str:
    """What a page says of its picture: a few words of the truth, in no sentence, with a file's name or number."""
    words = [word for word in re.findall(r"\w+", caption.lower()) if word not in DULL]
    kept = sorted(rng.permutation(len(words))[: int(rng.integers(1, 4))])
    tail = ("", ".jpg", f" ({int(rng.integers(1, 100))})")[int(rng.integers(0, 3))]
    return f"Alt text: {' '.join(words[i] for i in kept)}{tail}\n"


def build(settings: CaptionSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        key = f"{number:06d}"
        if rng.random() < settings.pages_share:
            pages = [scene(rng, settings, held_out) for _ in range(settings.pages)]
            parts = [p for i, page in enumerate(pages) for p in (image(f"{i}.jpg"), text(page[1] + "\n"))]
            yield Record(key, document(parts, "interleaved"), {f"{i}.jpg": page[0] for i, page in enumerate(pages)})
            continue
        file, caption, plain = scene(rng, settings, held_out)
        domain = "knowledge" if plain else "caption"
        if rng.random() < settings.conversation_share:
            hint = alt_text(rng, caption) if rng.random() < settings.alt_text_share else ""
            body = conversation([([image("0.jpg"), text(hint + DESCRIBE)], caption)], domain)
        else:
            body = document([image("0.jpg"), text(caption)], domain)
        yield Record(key, body, {"0.jpg": file})
