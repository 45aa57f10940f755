"""Screens of a small application (``gui_app``): what is where, where to click, and whole tasks step by step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megatron_qwen3vl.recipes.boxes import point_entry, point_in_thousandths
from megatron_qwen3vl.recipes.gui_app import FIELDS, App, Element, State, click, draw_app, picture, type_text
from megatron_qwen3vl.recipes.record import Part, Record, conversation, image, png, text
from megatron_qwen3vl.recipes.scenes import pick
from megatron_qwen3vl.recipes.splits import belongs

PERCEPTION, TRACE = "gui", "gui_trace"
TOOL = {
    "type": "function",
    "function": {
        "name": "computer_use",
        "description": "Mouse and keyboard. Coordinates are 0 to 1000 over the screen's width and height.",
        "parameters": {
            "type": "object",
            "properties": {
                "action": {"type": "string", "enum": ["left_click", "type", "terminate"]},
                "coordinate": {"type": "array"},
                "text": {"type": "string"},
                "status": {"type": "string", "enum": ["success", "failure"]},
            },
            "required": ["action"],
        },
    },
}
SYSTEM = f"# Tools\n\n<tools>\n{json.dumps(TOOL)}\n</tools>"


@dataclass(frozen=True)
class GuiSettings:
    canvases: tuple[tuple[int, int], ...]  # width, height in pixels; one is drawn for each sample
    fields: tuple[int, int]  # fewest and most of a form; so the next two
    ticks: tuple[int, int]
    buttons: tuple[int, int]
    trace_share: float  # whole tasks, a screenshot a step; the others are questions about one screen
    turns: int  # most questions about one screen


def _start(rng: np.random.Generator, settings: GuiSettings, filled: float) -> tuple[App, State]:
    counts = [int(rng.integers(low, high + 1)) for low, high in (settings.fields, settings.ticks, settings.buttons)]
    app = draw_app(rng, pick(rng, settings.canvases), *counts)
    values = tuple((e.label, pick(rng, FIELDS[e.label]) if rng.random() < filled else "") for e in app.of("field"))
    ticked = frozenset(e.label for e in app.of("tick") if rng.random() < 0.5)
    return app, State(values, ticked, None, "")


def _inside(rng: np.random.Generator, element: Element) -> tuple[float, float]:
    """A place in an element, in pixels, away from its edge."""
    left, top, right, bottom = element.box
    return float(rng.integers(left + 3, right - 2)), float(rng.integers(top + 3, bottom - 2))


def _ask(rng: np.random.Generator, app: App, state: State) -> tuple[str, str]:
    element = pick(rng, app.elements)
    kind = rng.random()
    if kind < 0.3:
        place = list(point_in_thousandths(*_inside(rng, element), app.canvas))
        return f"Which element is at {place}?", element.name
    if kind < 0.7 or element.kind == "button":
        goal = {"field": "change {}", "tick": "switch {} on or off", "button": "press {}"}[element.kind]
        entry = point_entry(element.centre, app.canvas, element.name)
        return f"Where do you click to {goal.format(element.label)}? Output JSON.", json.dumps(entry)
    if element.kind == "tick":
        return f"Is {element.label} ticked?", "Yes." if element.label in state.ticked else "No."
    value = state.text(element.label)
    return f"What does the field {element.label} say?", value or "Nothing."


def _questions(rng: np.random.Generator, settings: GuiSettings, held_out: bool) -> tuple[dict, dict[str, bytes]]:
    app, state = _start(rng, settings, 0.6)
    while not belongs(f"{app.elements} {sorted(state.ticked)} {state.values}", held_out):
        app, state = _start(rng, settings, 0.6)
    asked: dict[str, str] = {}
    for _ in range(int(rng.integers(1, settings.turns + 1))):
        asked.setdefault(*_ask(rng, app, state))
    turns: list[tuple[list[Part], str]] = [([text(question)], answer) for question, answer in asked.items()]
    turns[0] = ([image("0.png"), *turns[0][0]], turns[0][1])
    return conversation(turns, PERCEPTION), {"0.png": png(picture(app, state))}


def _goal(rng: np.random.Generator, app: App, state: State) -> tuple[str, list[Element], dict[str, str]]:
    """The task in words, the elements to use in order, and what to type into fields."""
    typed = {e.label: pick(rng, FIELDS[e.label]) for e in app.of("field") if rng.random() < 0.6}
    toggled = [e for e in app.of("tick") if rng.random() < 0.4]
    button = pick(rng, app.of("button"))
    said = [f"set {label} to {value}" for label, value in typed.items()]
    said += [f"switch {e.label} {'off' if e.label in state.ticked else 'on'}" for e in toggled]
    words = ", ".join([*said, f"{'then ' if said else ''}press {button.label}"])
    used = [e for e in app.of("field") if e.label in typed] + toggled + [button]
    return f"{words[0].upper()}{words[1:]}.", used, typed


def _trace(rng: np.random.Generator, settings: GuiSettings, held_out: bool) -> tuple[dict, dict[str, bytes]]:
    app, state = _start(rng, settings, 0.0)
    task, used, typed = _goal(rng, app, state)
    while not belongs(f"{app.elements} {task}", held_out):
        app, state = _start(rng, settings, 0.0)
        task, used, typed = _goal(rng, app, state)
    media = {"0.png": png(picture(app, state))}
    turns: list[tuple[list[Part], str]] = []
    shown: list[Part] = [image("0.png"), text(task)]

    def act(arguments: dict[str, object], after: State) -> State:
        nonlocal shown
        turns.append((shown, _call(arguments)))
        name = f"{len(media)}.png"
        media[name] = png(picture(app, after))
        shown = [text("<tool_response>\n"), image(name), text("\n</tool_response>")]
        return after

    for element in used:
        place = point_in_thousandths(*element.centre, app.canvas)
        x, y = (p / 1000 * side for p, side in zip(place, app.canvas, strict=True))
        state = act({"action": "left_click", "coordinate": list(place)}, click(app, state, x, y))
        if element.kind == "field":
            state = act({"action": "type", "text": typed[element.label]}, type_text(state, typed[element.label]))
    turns.append((shown, _call({"action": "terminate", "status": "success"})))
    body = conversation(turns, TRACE)
    return body | {"messages": [{"role": "system", "content": SYSTEM}, *body["messages"]]}, media


def _call(arguments: dict[str, object]) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'computer_use', 'arguments': arguments})}\n</tool_call>"


def build(settings: GuiSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        make = _trace if rng.random() < settings.trace_share else _questions
        body, media = make(rng, settings, held_out)
        yield Record(f"{number:06d}", body, media)
