"""The demonstration's questions: held-out samples of built-in domains, each also to be asked with another's picture.

Pictures come from the domains' own builders, of the held-out split and from another seed than any shard's.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from megatron_qwen3vl.recipes.build import BUILDERS, read_recipe
from megatron_qwen3vl.recipes.record import Record

SEED = 20_000


@dataclass(frozen=True)
class Question:
    """``other``: the picture of another sample, whose right answer to this prompt's kind is a different one."""

    picture: bytes
    prompt: str
    answer: str
    other: bytes


@dataclass(frozen=True)
class Subject:
    """``domain``: of data_recipes/domains. ``settings``: what differs from its recipe, so that all samples ask this.

    ``mark`` gives the figures of one answer: (what was said, question) -> name -> value; a subject's figures are means.
    """

    name: str
    domain: str
    settings: dict[str, Any]
    count: int
    max_tokens: int
    mark: Callable[[str, Question], dict[str, float]]


def questions(subject: Subject, domains: Path) -> tuple[Question, ...]:
    """The same questions every time. Neighbours differ in their answers, so that the exchange is one."""
    recipe, settings = read_recipe(domains / f"{subject.domain}.yaml")
    settings = replace(settings, **subject.settings)
    records = BUILDERS[recipe.builder].build(settings, 4 * subject.count, True, SEED)
    asked: list[tuple[bytes, str, str]] = []
    for picture, prompt, answer in map(_single_turn, records):
        last = len(asked) == subject.count - 1
        neighbours = [*asked[-1:], *(asked[:1] if last else [])]
        if all(answer != other for _, _, other in neighbours):
            asked.append((picture, prompt, answer))
        if len(asked) == subject.count:
            break
    following = asked[1:] + asked[:1]
    return tuple(Question(*own, other=other[0]) for own, other in zip(asked, following, strict=True))


def _single_turn(record: Record) -> tuple[bytes, str, str]:
    ask, answer = record.body["messages"]
    (picture,) = record.media.values()
    (prompt,) = [part["text"] for part in ask["content"] if part["type"] == "text"]
    return picture, prompt, answer["content"]


def exact(said: str, question: Question) -> dict[str, float]:
    return {"exact": float(said.strip() == question.answer)}


def box_overlap(said: str, question: Question) -> dict[str, float]:
    """Intersection over union with the right box; 0 for what is no box."""
    box, right = _numbers(said, "bbox_2d", 4), _numbers(question.answer, "bbox_2d", 4)
    assert right is not None, question.answer
    overlap = 0.0 if box is None else _iou(box, right)
    return {"iou": overlap, "iou>0.5": float(overlap > 0.5)}


def point_inside(said: str, question: Question) -> dict[str, float]:
    """Whether the point lies on the object: on the pixels of the right point's colour that hang together with it."""
    point, right = _numbers(said, "point_2d", 2), _numbers(question.answer, "point_2d", 2)
    assert right is not None, question.answer
    pixels = np.asarray(Image.open(io.BytesIO(question.picture)).convert("RGB"))
    spot = None if point is None else _pixel(point, pixels)
    return {"inside": float(spot is not None and bool(_object_at(pixels, _pixel(right, pixels))[spot]))}


def _numbers(said: str, member: str, count: int) -> list[float] | None:
    found = re.search(rf'"{member}":\s*(\[[\d,. ]*\])', said)
    try:
        values = json.loads(found[1]) if found else []
    except ValueError:
        return None
    return [float(value) for value in values] if len(values) == count else None


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    def area(box: Sequence[float]) -> float:
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    common = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    union = area(a) + area(b) - common
    return common / union if union > 0 else 0.0


def _pixel(point: Sequence[float], pixels: np.ndarray) -> tuple[int, int]:
    """Row and column of a point in thousandths."""
    height, width = pixels.shape[:2]
    row, column = int(point[1] * height / 1000), int(point[0] * width / 1000)
    return min(max(row, 0), height - 1), min(max(column, 0), width - 1)


def _object_at(pixels: np.ndarray, spot: tuple[int, int]) -> np.ndarray:
    """bool [height, width]: the pixels of one colour around ``spot``; things of one colour never touch."""
    same = (pixels == pixels[spot]).all(-1)
    region = np.zeros_like(same)
    region[spot] = True
    while True:
        grown = region.copy()
        grown[1:] |= region[:-1]
        grown[:-1] |= region[1:]
        grown[:, 1:] |= region[:, :-1]
        grown[:, :-1] |= region[:, 1:]
        grown &= same
        if (grown == region).all():
            return region
        region = grown


def subjects() -> Iterator[Subject]:
    yield Subject("reading", "numbers", {"conversation_share": 1.0}, 500, 8, exact)
    yield Subject("naming", "naming_easy", {}, 200, 12, exact)
    yield Subject("counting", "counting_easy", {}, 200, 6, exact)
    yield Subject("boxes", "grounding_easy", {"tasks": {"box": 1.0}}, 200, 36, box_overlap)
    yield Subject("points", "grounding_easy", {"tasks": {"point": 1.0}}, 200, 24, point_inside)
