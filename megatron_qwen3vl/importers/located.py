"""Labelled boxes of a picture -> questions and answers about where things are, what they are and how many.

A label is *whole* in a picture where every thing of it can be given. A crowd or group region, a thing left out by its
flags, and one without area or too small to see make their label not whole: then nothing is asked that would need all of
them ("locate every", "how many"), for the answer would be false. What a single box holds can still be asked.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.choosing import Chooser
from megatron_qwen3vl.importers.files import sample
from megatron_qwen3vl.importers.frame import Made, Unwanted, option
from megatron_qwen3vl.importers.pictures import FRAMES, Frame, Photo
from megatron_qwen3vl.recipes.boxes import Box, objects_json
from megatron_qwen3vl.recipes.record import conversation, image, text

TASKS = ("categories", "label", "count", "name")
GROUPS = ("leave", "label")
NOTHING = "nothing to ask about"

FIND_EVERY = (
    "Locate every instance that belongs to the following categories: {}. Report bbox coordinates in JSON format.",
    "Detect all objects of these categories and output their bboxes in JSON: {}.",
    "Find every {} in the picture; give the bounding boxes as JSON.",
    "Which of these are in the picture, and where: {}? Output the bboxes in JSON.",
)
FIND_ALL = (
    "Locate every {}, output the bboxes in JSON.",
    "Detect each {} and report bbox coordinates in JSON format.",
    "Where is each {}? Give the bounding boxes as JSON.",
    "Draw a box around every instance of: {}. Answer in JSON.",
)
FIND = (
    "Locate the {}, output its bbox in JSON.",
    "Where is the {}? Give its bounding box as JSON.",
    "Report the bbox coordinates of the {} in JSON format.",
)
COUNT = (
    "How many instances of {} are there?",
    "Count every {} in the picture.",
    "What is the number of objects of the kind {}?",
)
COUNT_BY_BOXES = (
    "Locate each {} with its bbox in JSON, then count them.",
    "Give the bbox of every {} in JSON, and then their number.",
)
NAME = ("What is in the box {}?", "Name the object inside {}.", "Which category does the object in the box {} have?")


@dataclass(frozen=True)
class BoxSettings:
    """Keys of all sources of labelled boxes."""

    images: str | None = option(None, "folder of the images; null looks beside SOURCE")
    turns: int = option(3, "most questions about one picture")
    tasks: tuple[str, ...] = option(TASKS, f"what is asked, out of {','.join(TASKS)}")
    max_objects: int = option(60, "most boxes of one answer")
    min_side: float = option(2.0, "pixels; a label with a smaller box in a picture is not asked for as a whole there")
    groups: str = option("leave", "crowds and groups: `leave` does not ask for their label, `label` says `group of`")
    negatives: bool = option(False, "also ask for what is not there (answers [] and 0), in empty pictures too")
    coordinates: str = option("stored", "what they are about where a picture's EXIF turns it but keeps its size: "
                              "`stored` pixels or the `displayed` picture")  # fmt: skip

    def __post_init__(self) -> None:
        problems = [line for task in self.tasks for line in one_of("tasks", task, TASKS)]
        if not self.tasks:
            problems.append(f"tasks: names none; there are {','.join(TASKS)}")
        for name, value, least in (("turns", self.turns, 1), ("max_objects", self.max_objects, 1)):
            if value < least:
                problems.append(f"{name}: {value} must be at least {least}")
        if not self.min_side >= 0:
            problems.append(f"min_side: {self.min_side} must be at least 0")
        problems += one_of("groups", self.groups, GROUPS) + one_of("coordinates", self.coordinates, FRAMES)
        if problems:
            raise UserError(problems)


def one_of(name: str, value: str, allowed: Sequence[str]) -> list[str]:
    """A line where ``value`` is none of ``allowed``."""
    return [] if value in allowed else [f"{name}: {value} is unknown; there are {', '.join(allowed)}"]


@dataclass(frozen=True)
class Mark:
    """A box as its source gives it: left, top, right, bottom in pixels of the source's frame.

    ``crowd``: it holds many things of its label. ``left_out``: by its flags, it is not to be asked about.
    """

    label: str
    edges: tuple[float, float, float, float]
    crowd: bool = False
    left_out: bool = False


@dataclass(frozen=True)
class Seen:
    """What can be asked about a picture. ``absent``: labels of which there is surely none."""

    things: tuple[tuple[str, Box], ...]
    whole: tuple[str, ...]
    absent: tuple[str, ...]

    def boxes(self, label: str) -> list[Box]:
        return [box for name, box in self.things if name == label]


def look(
    marks: Sequence[Mark], frame: Frame, settings: BoxSettings, absent: Sequence[str], not_whole: Collection[str] = ()
) -> Seen:
    """``absent``: labels of which there is none if no mark has them. ``not_whole``: labels whose marks are not all of
    their things, for a reason that the source knows."""
    things: list[tuple[str, Box]] = []
    torn = set(not_whole)
    for mark in marks:
        box = frame.box(*mark.edges, settings.min_side)
        if mark.left_out or box is None:
            torn.add(mark.label)
        elif not mark.crowd:
            things.append((mark.label, box))
        else:
            torn.add(mark.label)
            if settings.groups == "label":
                things.append((f"group of {mark.label}", box))
    labels = dict.fromkeys(label for label, _ in things)
    marked = {mark.label for mark in marks}
    return Seen(
        tuple(things),
        tuple(label for label in labels if label not in torn),
        tuple(label for label in absent if label not in marked) if settings.negatives else (),
    )


def entries(things: Sequence[tuple[str, Box]]) -> str:
    """The answer's list; ``[]`` for nothing."""
    return objects_json([{"bbox_2d": list(box), "label": label} for label, box in things]) if things else "[]"


Asked = tuple[str, str] | None  # question and answer; None: the picture offers nothing to ask


def _categories(seen: Seen, choose: Chooser, settings: BoxSettings) -> Asked:
    chosen: list[str] = []
    room = settings.max_objects
    for label in choose.some(seen.whole, len(seen.whole)):
        if len(seen.boxes(label)) <= room:
            chosen.append(label)
            room -= len(seen.boxes(label))
    chosen += choose.some(seen.absent, 2)
    if len(chosen) < 2:
        return None
    named = choose.some(chosen, len(chosen))
    return choose.pick(FIND_EVERY).format(", ".join(named)), entries([t for t in seen.things if t[0] in chosen])


def _label(seen: Seen, choose: Chooser, settings: BoxSettings) -> Asked:
    fitting = [label for label in seen.whole if len(seen.boxes(label)) <= settings.max_objects]
    if seen.absent and (not fitting or choose.number(4) == 0):
        return choose.pick(FIND_ALL).format(choose.pick(seen.absent)), entries([])
    if not fitting:
        return None
    label = choose.pick(fitting)
    things = [(label, box) for box in seen.boxes(label)]
    if len(things) == 1 and choose.number(2):
        return choose.pick(FIND).format(label), json.dumps({"bbox_2d": list(things[0][1]), "label": label})
    return choose.pick(FIND_ALL).format(label), entries(things)


def _count(seen: Seen, choose: Chooser, settings: BoxSettings) -> Asked:
    counted = [label for label in seen.whole if not label.startswith("group of ")]
    if seen.absent and (not counted or choose.number(4) == 0):
        return choose.pick(COUNT).format(choose.pick(seen.absent)), "0"
    if not counted:
        return None
    label = choose.pick(counted)
    boxes = seen.boxes(label)
    if len(boxes) <= settings.max_objects and choose.number(2):
        located = entries([(label, box) for box in boxes])
        return choose.pick(COUNT_BY_BOXES).format(label), f"{located}\n{len(boxes)}"
    return choose.pick(COUNT).format(label), str(len(boxes))


def _name(seen: Seen, choose: Chooser, settings: BoxSettings) -> Asked:
    # Two things in one box would have two names.
    clear = [(label, box) for label, box in seen.things if sum(box == other for _, other in seen.things) == 1]
    if not clear:
        return None
    label, box = choose.pick(clear)
    return choose.pick(NAME).format(list(box)), label


_ASK = dict(zip(TASKS, (_categories, _label, _count, _name), strict=True))


def ask(key: str, seen: Seen, settings: BoxSettings) -> list[tuple[str, str]]:
    """Questions with their answers, at most ``settings.turns``, no two alike; none where there is nothing to ask."""
    choose = Chooser(key)
    wanted = 1 + choose.number(settings.turns)
    asked: dict[str, str] = {}
    for round_ in range(4 * wanted):
        task = choose.pick(settings.tasks) if round_ < 2 * wanted else settings.tasks[round_ % len(settings.tasks)]
        pair = _ASK[task](seen, choose, settings)
        if pair is not None:
            asked.setdefault(*pair)
        if len(asked) == wanted:
            break
    return list(asked.items())


def converse(photo: Photo, turns: Sequence[tuple[str, str]], domain: str) -> Made:
    """The picture with the first question.

    Raises:
        Unwanted: there are no turns.
        BadSample: a text that is no Unicode.
    """
    if not turns:
        raise Unwanted(NOTHING)
    asked = [([text(question)], answer) for question, answer in turns]
    asked[0] = ([image(photo.name), *asked[0][0]], asked[0][1])
    return sample(conversation(asked, domain), {photo.name: photo.data})
