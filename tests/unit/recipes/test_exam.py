"""The demonstration's questions and how answers are marked."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_qwen3vl.recipes.exam import Question, Subject, box_overlap, exact, point_inside, questions, subjects

DOMAINS = Path(__file__).parents[3] / "data_recipes" / "domains"


@pytest.mark.parametrize("subject", subjects(), ids=lambda subject: subject.name)
def test_right_answers_get_full_marks_and_those_to_the_other_picture_do_not(subject: Subject) -> None:
    asked = questions(replace(subject, count=24), DOMAINS)
    assert asked == questions(replace(subject, count=24), DOMAINS) and len(asked) == 24
    by_picture = {question.picture: question.answer for question in asked}
    for question in asked:
        assert set(subject.mark(question.answer, question).values()) == {1.0}
        assert set(subject.mark("", question).values()) == {0.0}
        assert by_picture[question.other] != question.answer
    for name in subject.mark("", asked[0]):
        exchanged = np.mean([subject.mark(by_picture[question.other], question)[name] for question in asked])
        assert exchanged < 0.5, name


def question(answer: object) -> Question:
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[10:20, 10:30] = (255, 0, 0)
    pixels[10:20, 60:80] = (255, 0, 0)  # of the same colour, but another thing
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Question(buffer.getvalue(), "", answer if isinstance(answer, str) else json.dumps(answer), b"")


@pytest.mark.parametrize(
    "said, overlap",
    [
        ('{"bbox_2d": [100, 200, 300, 400]}', 1.0),
        ('{"bbox_2d": [200, 200, 400, 400]}', 1 / 3),
        ('{"bbox_2d": [200, 200, 300, 400]} and more', 0.5),
        ('{"bbox_2d": [300, 400, 100, 200]}', 0.0),
        ('{"bbox_2d": [600, 200, 800, 400]}', 0.0),
        ('{"bbox_2d": [100, 200, 300]}', 0.0),
        ('{"bbox_2d": [1,,2]}', 0.0),
    ],
)
def test_box_overlap_by_hand(said: str, overlap: float) -> None:
    marks = box_overlap(said, question({"bbox_2d": [100, 200, 300, 400]}))
    assert marks == {"iou": pytest.approx(overlap), "iou>0.5": float(overlap > 0.5)}


@pytest.mark.parametrize(
    "point, inside",
    [([100, 200], 1.0), ([299, 399], 1.0), ([301, 300], 0.0), ([700, 300], 0.0), ([5000, -3], 0.0), ([200], 0.0)],
)
def test_a_point_counts_on_the_pixels_of_the_thing_alone(point: list[int], inside: float) -> None:
    asked = question({"point_2d": [200, 300]})
    assert point_inside(json.dumps({"point_2d": point}), asked) == {"inside": inside}


def test_exact_forgives_white_space_only() -> None:
    assert [exact(said, question("123"))["exact"] for said in ("123", " 123\n", "1234", "12", "")] == [1, 1, 0, 0, 0]
