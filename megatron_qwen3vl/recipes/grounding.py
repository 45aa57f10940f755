"""Where things are, by boxes and points, and what is at a place: both directions over the same scenes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes.boxes import (
    box_entry,
    box_in_thousandths,
    objects_json,
    point_entry,
    point_in_thousandths,
)
from megatron_qwen3vl.recipes.record import Part, Record, conversation, image, text
from megatron_qwen3vl.recipes.referring import WAYS, expressions
from megatron_qwen3vl.recipes.scenes import Scene, SceneSettings, Thing, draw_scene, encode, paint_scene, pick

DOMAIN = "grounding"
FIND = ("Locate the {}, output its bbox in JSON.", "Where is the {}? Give its bounding box as JSON.",
        "Report the bbox coordinates of the {} in JSON format.")  # fmt: skip
FIND_ALL = ("Locate every {}, output the bboxes in JSON.", "Detect each {} and report bbox coordinates in JSON format.")
FIND_EVERYTHING = ("Locate everything, output the bboxes in JSON.", "Detect all things in the picture as JSON boxes.")
POINT = ("Point to the {}, output its point in JSON.", "Give a point on the {} as JSON.")
POINT_ALL = ("Point to every {}, output the points in JSON.", "Give one point for each {} as JSON.")
AT_BOX = ("What is in the box {}?", "Name the thing inside {}.")
AT_POINT = ("What is at the point {}?", "Name the thing at {}.")
NAME = ("What is it?", "Name the thing in the picture.")


@dataclass(frozen=True)
class GroundingSettings:
    scene: SceneSettings
    tasks: Mapping[str, float]  # shares of the tasks below; they need not add up to one
    turns: int  # most questions about one picture
    phrasings: int  # how many of the ways to ask a question are used
    refer_by: tuple[str, ...]  # ways to single a thing out, see referring.WAYS
    labelled: bool  # answers name what they locate

    def __post_init__(self) -> None:
        unknown = [name for name in self.tasks if name not in TASKS]
        problems = [f"settings.tasks.{name}: unknown; there are {', '.join(TASKS)}" for name in unknown]
        strange = [way for way in self.refer_by if way not in WAYS]
        problems += [f"settings.refer_by: {way} is unknown; there are {', '.join(WAYS)}" for way in strange]
        if self.turns < 1 or self.phrasings < 1:
            problems.append("settings.turns, settings.phrasings: must be at least 1")
        if "name" in self.tasks and self.scene.things[1] > 1:
            problems.append("settings.tasks.name: asks about the only thing; set settings.scene.things to [1, 1]")
        if problems:
            raise UserError(problems)


@dataclass(frozen=True)
class Asker:
    """What a task needs."""

    rng: np.random.Generator
    scene: Scene
    settings: GroundingSettings

    def say(self, ways: tuple[str, ...], about: str = "") -> str:
        return pick(self.rng, ways[: self.settings.phrasings]).format(about)

    def label(self, thing: Thing) -> str | None:
        return thing.name if self.settings.labelled else None

    def boxes(self, things: tuple[Thing, ...]) -> str:
        return objects_json([box_entry(thing.box, self.scene.canvas, self.label(thing)) for thing in things])

    def points(self, things: tuple[Thing, ...]) -> str:
        return objects_json([point_entry(thing.point, self.scene.canvas, self.label(thing)) for thing in things])

    def referred(self) -> tuple[str, Thing] | None:
        """An expression and the thing it means; None where nothing can be singled out."""
        for index in self.rng.permutation(len(self.scene.things)):
            thing = self.scene.things[int(index)]
            found = expressions(self.scene, thing, self.settings.refer_by)
            if found:
                return pick(self.rng, found), thing
        return None


Asked = tuple[str, str] | None  # question and answer; None: the scene offers nothing to ask


def _box(ask: Asker) -> Asked:
    referred = ask.referred()
    if referred is None:
        return None
    expression, thing = referred
    return ask.say(FIND, expression), json.dumps(box_entry(thing.box, ask.scene.canvas, ask.label(thing)))


def _point(ask: Asker) -> Asked:
    referred = ask.referred()
    if referred is None:
        return None
    expression, thing = referred
    return ask.say(POINT, expression), json.dumps(point_entry(thing.point, ask.scene.canvas, ask.label(thing)))


def _boxes(ask: Asker) -> Asked:
    name = pick(ask.rng, ask.scene.names)
    return ask.say(FIND_ALL, name), ask.boxes(ask.scene.named(name))


def _everything(ask: Asker) -> Asked:
    return ask.say(FIND_EVERYTHING), ask.boxes(ask.scene.things)


def _points(ask: Asker) -> Asked:
    name = pick(ask.rng, ask.scene.names)
    return ask.say(POINT_ALL, name), ask.points(ask.scene.named(name))


def _at_box(ask: Asker) -> Asked:
    thing = pick(ask.rng, ask.scene.things)
    return ask.say(AT_BOX, str(list(box_in_thousandths(thing.box, ask.scene.canvas)))), thing.name


def _at_point(ask: Asker) -> Asked:
    thing = pick(ask.rng, ask.scene.things)
    return ask.say(AT_POINT, str(list(point_in_thousandths(*thing.point, ask.scene.canvas)))), thing.name


def _name(ask: Asker) -> Asked:
    return ask.say(NAME), ask.scene.things[0].name


TASKS: dict[str, Callable[[Asker], Asked]] = {
    "box": _box,  # a referring expression -> one box
    "point": _point,  # a referring expression -> one point
    "boxes": _boxes,  # a name -> the boxes of all things of that name
    "points": _points,
    "everything": _everything,  # every thing of the picture with its box
    "name_at_box": _at_box,
    "name_at_point": _at_point,
    "name": _name,  # the only thing of the picture
}


def build(settings: GroundingSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    names, shares = list(settings.tasks), np.array(list(settings.tasks.values()), float)
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        turns: list[tuple[list[Part], str]] = []
        while not turns:
            scene = draw_scene(rng, settings.scene, held_out)
            ask = Asker(rng, scene, settings)
            asked: dict[str, str] = {}
            for _ in range(int(rng.integers(1, settings.turns + 1))):
                pair = TASKS[names[int(rng.choice(len(names), p=shares / shares.sum()))]](ask)
                if pair is not None:
                    asked.setdefault(*pair)
            turns = [([text(question)], answer) for question, answer in asked.items()]
        name, file = encode(scene, paint_scene(rng, scene, held_out))
        turns[0] = ([image(name), *turns[0][0]], turns[0][1])
        yield Record(f"{number:06d}", conversation(turns, DOMAIN), {name: file})
