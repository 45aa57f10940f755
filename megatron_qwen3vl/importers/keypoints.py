"""The joints of a person -> questions for points."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_qwen3vl.importers.choosing import Chooser
from megatron_qwen3vl.recipes.boxes import Box, objects_json

ALL = (
    "Give the {visible}keypoints of the {label} in the box {box} as points in JSON.",
    "Point to each {visible}joint of the {label} inside {box}, output the points in JSON.",
    "Where are the {visible}body parts of the {label} in the box {box}? Output one point for each in JSON.",
)
ONE = (
    "Point to the {joint} of the {label} in the box {box}, output its point in JSON.",
    "Give a point on the {joint} of the {label} inside {box} as JSON.",
)


@dataclass(frozen=True)
class Person:
    """``joints``: name -> point. Everything in thousandths."""

    label: str
    box: Box
    joints: Mapping[str, tuple[int, int]]


def ask_keypoints(key: str, people: Sequence[Person], turns: int, hidden: bool) -> list[tuple[str, str]]:
    """One question about each of at most ``turns`` people; none where two have the same box."""
    choose = Chooser(key)
    clear = [person for person in people if sum(person.box == other.box for other in people) == 1]
    asked = []
    for person in choose.some(clear, turns):
        points: list[dict[str, object]] = [
            {"point_2d": list(point), "label": joint} for joint, point in person.joints.items()
        ]
        about = {"label": person.label, "box": list(person.box), "visible": "" if hidden else "visible "}
        if choose.number(3):
            asked.append((choose.pick(ALL).format(**about), objects_json(points)))
        else:
            point = choose.pick(points)
            asked.append((choose.pick(ONE).format(joint=point["label"], **about), json.dumps(point)))
    return asked
