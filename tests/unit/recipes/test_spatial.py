"""Spatial answers follow from the pixels: things are found in the built samples' pictures, then asked about again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from built import built
from seen import Blob, blobs, pixels

SIGNS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
EDGES = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}


def is_container(blob: Blob) -> bool:
    """A rectangle's outline: its edges are covered, most of it is not."""
    left, top, right, bottom = blob.box
    inside = blob.mask[top:bottom, left:right]
    return bool(min(inside[1].mean(), inside[-2].mean(), inside[:, 1].mean(), inside[:, -2].mean()) > 0.95
                and inside[4:-4, 4:-4].mean() < 0.02)  # fmt: skip


class Picture:
    def __init__(self, shown: np.ndarray) -> None:
        self.size = (shown.shape[1], shown.shape[0])
        found = blobs(shown)
        self.containers = [b for b in found if b.colour != "frame" and is_container(b)]
        self.things = [b for b in found if b not in self.containers]

    def one(self, name: str) -> Blob:
        (blob,) = [b for b in self.things if b.name == name]
        return blob

    def answer(self, question: str) -> str:
        """What the question's answer is by the pixels."""
        names = re.findall(r"the ((?:striped |dotted )?\w+ (?:square|circle|triangle|cross|diamond|ring)|photo of "
                           r"(?:an? |the )?[a-z ]+?)(?=[?,]| inside| left| right| above| below| move| to be| be )",
                           question)  # fmt: skip
        things = [self.one(name) for name in names]
        if "inside" in question:
            (frame,) = self.containers
            held = [b for b in self.things if all(e > f for e, f in zip(b.box[:2], frame.box[:2], strict=True))
                    and all(e < f for e, f in zip(b.box[2:], frame.box[2:], strict=True))]  # fmt: skip
            assert len(held) == 1 and f"the {frame.colour} frame" in question
            return yes(held == things) if question.startswith("Is") else f"The {held[0].name}."
        if question.startswith("Is"):
            axis, sign = next(SIGNS[s] for s in SIGNS if f" {s} the" in question)
            return yes(sign * (things[0].centre[axis] - things[1].centre[axis]) > 0)
        if question.startswith("Where"):
            across, down = (things[0].centre[a] - things[1].centre[a] for a in (0, 1))
            sideways = ("left of" if across < 0 else "right of") if abs(across) > abs(down) else None
            return f"It is {sideways or ('above' if down < 0 else 'below')} the {things[1].name}."
        if "nearest" in question:
            others = [b for b in self.things if b is not things[0]]
            middle = np.array(things[0].centre)
            nearest = min(others, key=lambda b: float(((np.array(b.centre) - middle) ** 2).sum()))
            return f"The {nearest.name}."
        if "quarter" in question:
            x, y = (things[0].centre[a] > self.size[a] / 2 for a in (0, 1))
            return f"In the {('top', 'bottom')[y]} {('left', 'right')[x]} quarter."
        if "Name the things" in question:
            axis = 0 if "left to right" in question else 1
            return ", ".join(b.name for b in sorted(self.things, key=lambda b: b.centre[axis])) + "."
        if "edge of the picture" in question:
            edge = re.search(r"to the (\w+) edge", question)
            assert edge is not None
            return yes(not self.blocked(things[0], *EDGES[edge.group(1)]))
        if question.startswith("Which way"):
            axis = 0 if "above or below" in question else 1
            forward = things[1].centre[axis] > things[0].centre[axis]
            return f"It must move {(('left', 'right'), ('up', 'down'))[axis][forward]}."
        assert "hidden" in question, question
        return yes(things[0].size < things[1].size)

    def blocked(self, thing: Blob, axis: int, sign: int) -> bool:
        swept = list(thing.box)
        swept[axis if sign < 0 else axis + 2] = 0 if sign < 0 else self.size[axis]
        return any(
            b is not thing
            and b.box[0] < swept[2]
            and b.box[2] > swept[0]
            and b.box[1] < swept[3]
            and b.box[3] > swept[1]
            for b in self.things
        )


def yes(true: bool) -> str:
    return "Yes." if true else "No."


def test_answers_follow_from_the_pixels(tmp_path: Path) -> None:
    samples = built("spatial", tmp_path)
    assert len(samples) == 200
    wrong, answers = [], []
    for sample in samples:
        picture = Picture(pixels(sample.images[0]))
        for question, answer in sample.turns:
            answers.append(answer)
            if picture.answer(question) != answer:
                wrong.append(f"{sample.key} {question} {answer}, but by the pixels {picture.answer(question)}")
    assert not wrong
    assert 0.25 < answers.count("Yes.") / (answers.count("Yes.") + answers.count("No.")) < 0.75
    assert len({answer.split()[0] for answer in answers}) >= 5


def test_a_mirrored_picture_makes_answers_wrong(tmp_path: Path) -> None:
    """The check reads the picture: left and right exchanged, answers about left and right no longer hold."""
    found = total = 0
    for sample in built("spatial", tmp_path, count=60):
        picture = Picture(np.ascontiguousarray(pixels(sample.images[0])[:, ::-1]))
        for question, answer in sample.turns:
            if re.search(r" (left|right) of the|left to right", question) and "photo" not in question + answer:
                total += 1
                found += picture.answer(question) != answer
    assert total > 5 and found == total
