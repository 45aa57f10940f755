"""Can the model see? Held-out pictures of three handwritten digits, and the same with another picture.

A model that reads gets most of the first right; with exchanged pictures it can only be right by chance (0.001).
The handwritten digits are in no training picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_qwen3vl.recipes.digits import Kind, draw
from megatron_qwen3vl.recipes.grammar import READ_DIGITS
from megatron_qwen3vl.recipes.record import png

SEED = 20_000
KIND = Kind(length=3, canvas=(64, 32), size=(12, 23), share=1.0)  # as in data_recipes/domains/digits.yaml


@dataclass(frozen=True)
class Question:
    """``exchanged`` is the next question's picture: what to show for the control."""

    picture: bytes  # PNG
    answer: str  # three digits
    exchanged: bytes
    prompt: str = READ_DIGITS


@dataclass(frozen=True)
class Score:
    exact: float  # share of answers right in all three digits
    digits: float  # share of digits right


def questions(count: int) -> tuple[Question, ...]:
    """The same ``count`` questions every time. Neighbouring answers differ in at least one digit."""
    pictures: list[tuple[bytes, str]] = []
    number = 0
    while len(pictures) < count:
        picture = draw(np.random.default_rng([SEED, number]), KIND, 0.0, held_out=True)
        number += 1
        neighbours = pictures[-1:] + (pictures[:1] if len(pictures) == count - 1 else [])
        if all(picture.digits != answer for _, answer in neighbours):
            pictures.append((png(picture.pixels), picture.digits))
    shifted = pictures[1:] + pictures[:1]
    return tuple(Question(own[0], own[1], other[0]) for own, other in zip(pictures, shifted, strict=True))


def score(asked: Sequence[Question], answers: Sequence[str]) -> Score:
    """``answers``: what the model wrote, in the order of ``asked``; only the first three characters count."""
    given = [answer.strip()[:3] for answer in answers]
    exact = [g == q.answer for g, q in zip(given, asked, strict=True)]
    right = [a == b for g, q in zip(given, asked, strict=True) for a, b in zip(g.ljust(3), q.answer, strict=True)]
    return Score(float(np.mean(exact)), float(np.mean(right)))
