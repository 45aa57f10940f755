"""Boxes, points and names are right: found again in the built samples' pixels, without the code that drew them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from built import DOMAINS, built, falsified
from seen import Blob, blobs, pixels

from megatron_qwen3vl.recipes.reader import ReadSample

GROUNDING = ("grounding", "grounding_easy", "naming_easy")
ENDS = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "bottommost": (1, -1)}
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
# what a question is about; the others are about everything
EXPRESSION = re.compile(
    r"(?:(?:Locate|Point to|Detect|Where is|coordinates of|a point on|one point for) (?:the|every|each)) "
    r"(.+?)(?:, output|\? Give| as JSON| in JSON| and report)"
)


def matches(words: str, blob: Blob) -> bool:
    """Whether ``red circle``, ``circle`` or ``red thing`` may be said of the thing."""
    if words.startswith("photo of"):
        return blob.name == words
    colour = re.fullmatch(r"(\w+) thing", words)
    if colour is not None:
        return blob.colour == colour.group(1)
    return words == blob.shape or blob.name == words


def meant(expression: str, seen: list[Blob]) -> list[Blob]:
    """The things that an expression can mean."""
    side = re.fullmatch(r"(.+?) (left of|right of|above|below) the (.+)", expression)
    if side is not None:
        (anchor,) = meant(side.group(3), seen)
        axis, sign = SIDES[side.group(2)]
        return [b for b in meant(side.group(1), seen) if sign * (b.centre[axis] - anchor.centre[axis]) > 0]
    first, _, rest = expression.partition(" ")
    if first in ENDS:
        axis, sign = ENDS[first]
        return sorted(meant(rest, seen), key=lambda b: sign * b.centre[axis])[:1]
    if first in ("largest", "smallest"):
        return sorted(meant(rest, seen), key=lambda b: b.size, reverse=first == "largest")[:1]
    return [b for b in seen if matches(expression, b)]


def box_fits(box: list[int], blob: Blob, size: tuple[int, int]) -> bool:
    """Within a pixel and a thousandth of the pixels' own box, on every side."""
    return all(
        abs(value / 1000 * size[axis % 2] - edge) <= 1 + size[axis % 2] / 1000
        for axis, (value, edge) in enumerate(zip(box, blob.box, strict=True))
    )


def point_fits(point: list[int], blob: Blob, size: tuple[int, int]) -> bool:
    x, y = (min(int(value / 1000 * side), side - 1) for value, side in zip(point, size, strict=True))
    if blob.shape == "photo":
        return blob.box[0] <= x < blob.box[2] and blob.box[1] <= y < blob.box[3]
    return bool(blob.mask[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].any())


def located(answer: str, asked: list[Blob], size: tuple[int, int]) -> list[str]:
    """What is wrong with an answer that locates exactly the things ``asked`` for."""
    entries = json.loads(answer)
    entries = entries if isinstance(entries, list) else [entries]
    if len(entries) != len(asked):
        return [f"{len(entries)} located, {len(asked)} are there"]
    problems, left = [], list(asked)
    for entry in entries:
        fits = [
            b
            for b in left
            if (box_fits(entry["bbox_2d"], b, size) if "bbox_2d" in entry else point_fits(entry["point_2d"], b, size))
        ]
        if not fits:
            problems.append(f"nothing asked for is at {entry}")
        elif entry.get("label", fits[0].name) != fits[0].name:
            problems.append(f"{entry} is a {fits[0].name}")
        else:
            left.remove(fits[0])
    return problems


def shown(sample: ReadSample) -> tuple[list[Blob], tuple[int, int]]:
    """The things of a sample's picture, and its width and height."""
    picture = pixels(sample.images[0])
    return blobs(picture), (picture.shape[1], picture.shape[0])


def wrong(question: str, answer: str, seen: list[Blob], size: tuple[int, int]) -> list[str]:
    """What is wrong with one turn."""
    place = re.search(r"\[([\d, ]+)\]", question)
    if place is not None:
        numbers = [int(n) for n in place.group(1).split(",")]
        there = [b for b in seen if (box_fits if len(numbers) == 4 else point_fits)(numbers, b, size)]
        return [] if [b.name for b in there] == [answer] else [f"{question} {answer}: it is {[b.name for b in there]}"]
    if not answer.startswith(("{", "[")):
        return [] if [b.name for b in seen] == [answer] else [f"{answer}: it is {[b.name for b in seen]}"]
    expression = EXPRESSION.search(question)
    asked = seen if expression is None else meant(expression.group(1), seen)
    return [f"{question}: {problem}" for problem in located(answer, asked, size)]


@pytest.mark.parametrize("domain", GROUNDING)
def test_answers_are_what_the_pixels_show(domain: str, tmp_path: Path) -> None:
    samples = built(domain, tmp_path)
    problems, kinds = [], set()
    for sample in samples:
        seen, size = shown(sample)
        for question, answer in sample.turns:
            problems += wrong(question, answer, seen, size)
            kinds.add(re.sub(r"[^a-z]*", "", answer[:14]) if answer.startswith(("{", "[")) else "name")
    assert len(samples) == 200
    assert not problems
    expected = {"grounding": {"boxd", "pointd", "name"}, "grounding_easy": {"bboxd", "pointd", "name"}}
    assert len(kinds) == len(expected.get(domain, {"name"})), kinds


def test_false_answers_are_found(tmp_path: Path) -> None:
    caught = total = 0
    for sample in built("grounding", tmp_path, count=60):
        seen, size = shown(sample)
        for question, answer in sample.turns:
            for lie in falsified(answer):
                total += 1
                caught += bool(wrong(question, lie, seen, size))
    assert total > 100 and caught == total


def test_splits_share_no_scene(tmp_path: Path) -> None:
    for domain in ("grounding_easy", "naming_easy"):
        facts = [
            {
                tuple(sorted((b.name, b.box) for b in shown(sample)[0]))
                for sample in built(domain, tmp_path / split, split)
            }
            for split in ("train", "held_out")
        ]
        assert not facts[0] & facts[1] and min(map(len, facts)) > 10  # a name has few scenes on its grid


def test_the_recipes_are_for_the_demonstrations_size() -> None:
    import yaml

    for domain in ("grounding_easy", "naming_easy", "counting_easy"):
        scene = yaml.safe_load((DOMAINS / f"{domain}.yaml").read_text())["settings"]["scene"]
        assert all(width <= 128 and height <= 64 for width, height in scene["canvases"])
