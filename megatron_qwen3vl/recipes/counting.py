"""How many: by number alone, by boxes first, by points first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes.boxes import box_entry, objects_json, point_entry
from megatron_qwen3vl.recipes.record import Record, conversation, image, text
from megatron_qwen3vl.recipes.scenes import (
    COLOURS,
    SHAPES,
    Scene,
    SceneSettings,
    Thing,
    draw_scene,
    encode,
    paint_scene,
    pick,
)

DOMAIN = "counting"
FORMS = ("direct", "boxes", "points")
DIRECT = ("How many {} are there?", "Count the {}.", "What is the number of {} in the picture?")
BY_BOXES = ("Locate each of the {} with its bbox in JSON, then count them.",)
BY_POINTS = ("Point to each of the {} in JSON, then count them.",)


@dataclass(frozen=True)
class CountingSettings:
    """``forms``: shares of ``direct``, ``boxes`` and ``points``. ``groups``: what is counted, by shares:
    ``everything``, ``name`` (red circles), ``shape`` (circles), ``colour`` (red things)."""

    scene: SceneSettings
    forms: Mapping[str, float]
    groups: Mapping[str, float]
    absent_share: float  # of the direct questions, how many are about what is not there: the answer is 0
    phrasings: int
    labelled: bool

    def __post_init__(self) -> None:
        problems = [f"settings.forms.{f}: unknown; there are {', '.join(FORMS)}" for f in self.forms if f not in FORMS]
        problems += [
            f"settings.groups.{group}: unknown; there are {', '.join(GROUPS)}"
            for group in self.groups
            if group not in GROUPS
        ]
        if self.phrasings < 1:
            problems.append("settings.phrasings: must be at least 1")
        if problems:
            raise UserError(problems)


def plural(name: str) -> str:
    return name.replace("photo of", "photos of") if name.startswith("photo") else f"{name}s"


def _of_name(rng: np.random.Generator, scene: Scene) -> tuple[str, tuple[Thing, ...]]:
    name = pick(rng, scene.names)
    return plural(name), scene.named(name)


def _of_shape(rng: np.random.Generator, scene: Scene) -> tuple[str, tuple[Thing, ...]]:
    shape = pick(rng, scene.things).kind.shape
    return plural(shape), tuple(thing for thing in scene.things if thing.kind.shape == shape)


def _of_colour(rng: np.random.Generator, scene: Scene) -> tuple[str, tuple[Thing, ...]]:
    coloured = [thing for thing in scene.things if thing.kind.colour in COLOURS]
    if not coloured:
        return _of_all(rng, scene)
    colour = pick(rng, coloured).kind.colour
    return f"{colour} things", tuple(thing for thing in coloured if thing.kind.colour == colour)


def _of_all(rng: np.random.Generator, scene: Scene) -> tuple[str, tuple[Thing, ...]]:
    return "things", scene.things


GROUPS = {"everything": _of_all, "name": _of_name, "shape": _of_shape, "colour": _of_colour}


def _absent(rng: np.random.Generator, settings: CountingSettings, scene: Scene) -> str | None:
    shapes = {thing.kind.shape for thing in scene.things}
    missing = [shape for shape in SHAPES if shape in settings.scene.shapes and shape not in shapes]
    return plural(pick(rng, missing)) if missing else None


def _choose(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    names, parts = list(shares), np.array(list(shares.values()), float)
    return names[int(rng.choice(len(names), p=parts / parts.sum()))]


def _ask(rng: np.random.Generator, settings: CountingSettings, scene: Scene) -> tuple[str, str]:
    form = _choose(rng, settings.forms)
    group, things = GROUPS[_choose(rng, settings.groups)](rng, scene)
    if form == "direct":
        missing = _absent(rng, settings, scene) if rng.random() < settings.absent_share else None
        about, count = (group, len(things)) if missing is None else (missing, 0)
        return pick(rng, DIRECT[: settings.phrasings]).format(about), str(count)
    labels = [thing.name if settings.labelled else None for thing in things]
    if form == "boxes":
        entries = [box_entry(t.box, scene.canvas, label) for t, label in zip(things, labels, strict=True)]
    else:
        entries = [point_entry(t.point, scene.canvas, label) for t, label in zip(things, labels, strict=True)]
    ways = BY_BOXES if form == "boxes" else BY_POINTS
    return pick(rng, ways[: settings.phrasings]).format(group), f"{objects_json(entries)}\n{len(things)}"


def build(settings: CountingSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        scene = draw_scene(rng, settings.scene, held_out)
        question, answer = _ask(rng, settings, scene)
        name, file = encode(scene, paint_scene(rng, scene, held_out))
        yield Record(f"{number:06d}", conversation([([image(name), text(question)], answer)], DOMAIN), {name: file})
