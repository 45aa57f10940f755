"""Counts are right: connected parts of one hue in the built samples' pixels, without the code that drew them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from built import built, falsified
from seen import Blob, blobs, pixels
from test_grounding import located, matches

from megatron_qwen3vl.recipes.reader import ReadSample

ABOUT = re.compile(
    r"(?:How many|Count the|number of|each of the) (.+?)(?: are there\?| in the picture\?| with| in JSON|\.)"
)


def singular(words: str) -> str:
    return words.replace("photos of", "photo of") if words.startswith("photos") else words.removesuffix("s")


def wrong(sample: ReadSample, answer: str) -> list[str]:
    """What is wrong with this answer to the sample's question."""
    ((question, _),) = sample.turns
    picture = pixels(sample.images[0])
    about = ABOUT.search(question)
    assert about is not None, question
    word = singular(about.group(1))
    asked: list[Blob] = [b for b in blobs(picture) if word == "thing" or matches(word, b)]
    body, _, number = answer.rpartition("\n")
    problems = [] if number == str(len(asked)) else [f"{question} {number}: there are {len(asked)}"]
    if body:
        problems += located(body, asked, (picture.shape[1], picture.shape[0]))
    return problems


@pytest.mark.parametrize("domain", ["counting", "counting_easy"])
def test_counts_are_what_the_pixels_show(domain: str, tmp_path: Path) -> None:
    samples = built(domain, tmp_path)
    assert len(samples) == 200
    answers = [sample.turns[0][1] for sample in samples]
    assert not [problem for sample, answer in zip(samples, answers, strict=True) for problem in wrong(sample, answer)]
    counts = {int(answer.rpartition("\n")[2]) for answer in answers}
    forms = {tuple(json.loads(a.rpartition("\n")[0])[0])[0] if "\n" in a else "direct" for a in answers}
    if domain == "counting":
        assert counts >= set(range(9)) and forms == {"direct", "bbox_2d", "point_2d"}
    else:
        assert counts == {1, 2, 3, 4} and forms == {"direct"}


def test_false_counts_are_found(tmp_path: Path) -> None:
    for sample in built("counting", tmp_path, count=50):
        for lie in falsified(sample.turns[0][1]):
            assert wrong(sample, lie), lie
