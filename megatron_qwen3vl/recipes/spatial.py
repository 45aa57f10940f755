"""How things lie to each other and to the picture's frame, and what could be done with them where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes.boxes import Box
from megatron_qwen3vl.recipes.record import Part, Record, conversation, image, text
from megatron_qwen3vl.recipes.scenes import COLOURS, Scene, SceneSettings, Thing, draw_scene, encode, paint_scene, pick

DOMAIN = "spatial"
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
AWAY = 0.1  # of the picture's side: by how much things differ where a question is about the difference
CLEAR = 2  # pixels by which a way is free or blocked
OUTLINE = 3  # pixels of a container's edge
ROOM = 5  # pixels between a container's edge and the thing in it


@dataclass(frozen=True)
class SpatialSettings:
    scene: SceneSettings
    tasks: Mapping[str, float]  # shares of the tasks below; they need not add up to one
    container_share: float  # pictures in which a coloured frame encloses one of the things
    turns: int  # most questions about one picture

    def __post_init__(self) -> None:
        unknown = [name for name in self.tasks if name not in TASKS]
        problems = [f"settings.tasks.{name}: unknown; there are {', '.join(TASKS)}" for name in unknown]
        if self.turns < 1:
            problems.append("settings.turns: must be at least 1")
        if problems:
            raise UserError(problems)


@dataclass(frozen=True)
class Container:
    colour: str
    box: Box
    inside: Thing


@dataclass(frozen=True)
class View:
    """``things``: those whose name no other thing has."""

    rng: np.random.Generator
    canvas: tuple[int, int]
    things: tuple[Thing, ...]
    everything: tuple[Thing, ...]
    container: Container | None

    def two(self) -> tuple[Thing, Thing] | None:
        if len(self.things) < 2:
            return None
        first, second = self.rng.permutation(len(self.things))[:2]
        return self.things[int(first)], self.things[int(second)]

    def apart(self, a: Thing, b: Thing, axis: int) -> float:
        """b's centre minus a's, as a share of the picture."""
        return (b.centre[axis] - a.centre[axis]) / self.canvas[axis]


Asked = tuple[str, str] | None  # question and answer; None: nothing that is clear enough to ask


def _yes(true: bool) -> str:
    return "Yes." if true else "No."


def _relation(view: View) -> Asked:
    two = view.two()
    side, (axis, sign) = pick(view.rng, list(SIDES.items()))
    if two is None or abs(view.apart(*two, axis)) < AWAY:
        return None
    return f"Is the {two[0].name} {side} the {two[1].name}?", _yes(sign * view.apart(*two, axis) < 0)


def _where(view: View) -> Asked:
    two = view.two()
    if two is None:
        return None
    across, down = (two[0].centre[axis] - two[1].centre[axis] for axis in (0, 1))
    if max(abs(across), abs(down)) < 2 * min(abs(across), abs(down)):
        return None
    axis, sign = (0, np.sign(across)) if abs(across) > abs(down) else (1, np.sign(down))
    side = next(side for side, direction in SIDES.items() if direction == (axis, sign))
    return f"Where is the {two[0].name}, seen from the {two[1].name}?", f"It is {side} the {two[1].name}."


def _nearest(view: View) -> Asked:
    if len(view.things) != len(view.everything) or len(view.things) < 3:
        return None
    thing = pick(view.rng, view.things)
    others = sorted((t for t in view.things if t is not thing), key=lambda other: _distance(thing, other))
    if _distance(thing, others[1]) < 1.25 * _distance(thing, others[0]):
        return None
    return f"What is nearest to the {thing.name}, from centre to centre?", f"The {others[0].name}."


def _distance(a: Thing, b: Thing) -> float:
    return float(np.hypot(a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]))


def _quarter(view: View) -> Asked:
    thing = pick(view.rng, view.things)
    across, down = (thing.centre[axis] / view.canvas[axis] - 0.5 for axis in (0, 1))
    if min(abs(across), abs(down)) < AWAY / 2:
        return None
    words = f"{'top' if down < 0 else 'bottom'} {'left' if across < 0 else 'right'}"
    return f"In which quarter of the picture is the {thing.name}?", f"In the {words} quarter."


def _order(view: View) -> Asked:
    axis = int(view.rng.integers(0, 2))
    ordered = sorted(view.things, key=lambda thing: thing.centre[axis])
    steps = [view.apart(a, b, axis) for a, b in zip(ordered, ordered[1:], strict=False)]
    if len(view.things) != len(view.everything) or len(ordered) < 2 or min(steps) < AWAY / 2:
        return None
    words = ("left to right", "top to bottom")[axis]
    return f"Name the things from {words}.", ", ".join(thing.name for thing in ordered) + "."


def _free_way(view: View) -> Asked:
    """Planning: a thing pushed straight to an edge of the picture."""
    if view.container is not None:
        return None
    thing = pick(view.rng, view.things)
    edge, (axis, sign) = pick(view.rng, [("left", (0, -1)), ("right", (0, 1)), ("top", (1, -1)), ("bottom", (1, 1))])
    other = 1 - axis
    blocked = False
    for obstacle in view.everything:
        ahead = sign * (obstacle.centre[axis] - thing.centre[axis]) > 0 and obstacle is not thing
        shared = min(thing.box[other + 2], obstacle.box[other + 2]) - max(thing.box[other], obstacle.box[other])
        if ahead and abs(shared) < CLEAR:
            return None  # a matter of a pixel
        blocked |= ahead and shared > 0
    question = f"Can the {thing.name} move straight to the {edge} edge of the picture without its box touching another?"
    return question, _yes(not blocked)


def _move(view: View) -> Asked:
    """Planning: which way to go."""
    two = view.two()
    axis = int(view.rng.integers(0, 2))
    if two is None or abs(view.apart(*two, axis)) < AWAY:
        return None
    forward = view.apart(*two, axis) > 0
    goal = ("straight above or below", "straight beside")[axis]
    way = (("left", "right"), ("up", "down"))[axis][forward]
    return f"Which way must the {two[0].name} move to be {goal} the {two[1].name}?", f"It must move {way}."


def _larger(view: View) -> Asked:
    """An affordance: what can hide what."""
    two = view.two()
    if two is None or 0.8 < two[0].size / two[1].size < 1.25:
        return None
    return (
        f"Could the {two[0].name} be hidden behind a square as wide as the {two[1].name}?",
        _yes(two[0].size < two[1].size),
    )


def _inside(view: View) -> Asked:
    if view.container is None:
        return None
    if view.rng.random() < 0.5:
        return f"What is inside the {view.container.colour} frame?", f"The {view.container.inside.name}."
    thing = view.container.inside if view.rng.random() < 0.5 else pick(view.rng, view.things)
    return f"Is the {thing.name} inside the {view.container.colour} frame?", _yes(thing is view.container.inside)


TASKS: dict[str, Callable[[View], Asked]] = {
    "relation": _relation,
    "where": _where,
    "nearest": _nearest,
    "quarter": _quarter,
    "order": _order,
    "free_way": _free_way,
    "move": _move,
    "larger": _larger,
    "inside": _inside,
}


def _enclose(rng: np.random.Generator, scene: Scene, unique: tuple[Thing, ...]) -> Container | None:
    """A frame around one thing, clear of the others and of the picture's edge; None where there is no room."""
    used = {thing.kind.colour for thing in scene.things}
    colours = [colour for colour in COLOURS if colour not in used]
    for index in rng.permutation(len(unique)):
        thing, margin = unique[int(index)], OUTLINE + ROOM
        box = (thing.box[0] - margin, thing.box[1] - margin, thing.box[2] + margin, thing.box[3] + margin)
        free = all(
            other is thing
            or other.box[0] > box[2] + CLEAR
            or other.box[2] < box[0] - CLEAR
            or other.box[1] > box[3] + CLEAR
            or other.box[3] < box[1] - CLEAR
            for other in scene.things
        )
        if free and colours and min(box) >= 0 and box[2] <= scene.canvas[0] and box[3] <= scene.canvas[1]:
            return Container(pick(rng, colours), box, thing)
    return None


def _paint_container(pixels: np.ndarray, container: Container) -> None:
    left, top, right, bottom = container.box
    edge = np.ones((bottom - top, right - left), bool)
    edge[OUTLINE:-OUTLINE, OUTLINE:-OUTLINE] = False
    pixels[top:bottom, left:right][edge] = COLOURS[container.colour]


def build(settings: SpatialSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    names, shares = list(settings.tasks), np.array(list(settings.tasks.values()), float)
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        asked: dict[str, str] = {}
        while not asked:
            scene = draw_scene(rng, settings.scene, held_out)
            unique = tuple(thing for thing in scene.things if len(scene.named(thing.name)) == 1)
            if not unique:
                continue
            container = _enclose(rng, scene, unique) if rng.random() < settings.container_share else None
            view = View(rng, scene.canvas, unique, scene.things, container)
            for _ in range(int(rng.integers(1, settings.turns + 1))):
                pair = TASKS[names[int(rng.choice(len(names), p=shares / shares.sum()))]](view)
                if pair is not None:
                    asked.setdefault(*pair)
        pixels = paint_scene(rng, scene, held_out)
        if container is not None:
            _paint_container(pixels, container)
        name, file = encode(scene, pixels)
        turns: list[tuple[list[Part], str]] = [([text(question)], answer) for question, answer in asked.items()]
        turns[0] = ([image(name), *turns[0][0]], turns[0][1])
        yield Record(f"{number:06d}", conversation(turns, DOMAIN), {name: file})
