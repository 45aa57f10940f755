"""Conversations that call functions: tool schemas, calls in Qwen's form, what the tools return and what is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_qwen3vl.recipes.record import Record
from megatron_qwen3vl.recipes.scenes import pick
from megatron_qwen3vl.recipes.splits import belongs

DOMAIN = "tool_calls"
CITIES = {"Oslo": 4, "Lima": 19, "Cairo": 31, "Quito": 15, "Delhi": 33, "Bern": 9, "Accra": 29, "Perth": 22}
SKY = ("clear", "cloudy", "rainy", "windy")
RATES = {"EUR": 1.0, "USD": 1.1, "JPY": 160.0, "GBP": 0.85, "CHF": 0.95}
LENGTHS = {"m": 1.0, "km": 1000.0, "cm": 0.01, "mile": 1609.344, "foot": 0.3048}
OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "add": ("plus", lambda a, b: a + b),
    "subtract": ("minus", lambda a, b: a - b),
    "multiply": ("times", lambda a, b: a * b),
}


@dataclass(frozen=True)
class ToolCallSettings:
    tools: tuple[int, int]  # fewest and most tools on offer, the needed one among them
    turns: int  # most questions of a conversation
    unneeded_share: float  # questions that need no tool
    parallel_share: float  # questions about two things at once: two calls in one turn


def _schema(name: str, description: str, properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _one_of(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


@dataclass(frozen=True)
class Tool:
    """``ask``: what a question is about, and the arguments that answer it. ``say``: what ``run`` returned, in words."""

    schema: dict[str, Any]
    ask: Callable[[np.random.Generator], tuple[str, dict[str, Any]]]
    run: Callable[[dict[str, Any]], dict[str, Any]]
    say: Callable[[dict[str, Any], dict[str, Any]], str]


def _weather(arguments: dict[str, Any]) -> dict[str, Any]:
    city, day = arguments["city"], arguments["days_ahead"]
    return {"temperature": CITIES[city] + (day * 7 + len(city)) % 5, "sky": SKY[(len(city) + day) % len(SKY)]}


def _ask_weather(rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    city, day = pick(rng, list(CITIES)), int(rng.integers(0, 6))
    return f"the weather in {city} {day} days from now", {"city": city, "days_ahead": day}


def _ask_sum(rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    operation, a, b = pick(rng, list(OPERATIONS)), int(rng.integers(2, 1000)), int(rng.integers(2, 1000))
    return f"{a} {OPERATIONS[operation][0]} {b}", {"operation": operation, "a": a, "b": b}


def _ask_money(rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    source, target = (str(c) for c in rng.permutation(list(RATES))[:2])
    amount = int(rng.integers(1, 500))
    return f"{amount} {source} in {target}", {"amount": amount, "from": source, "to": target}


def _ask_length(rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    source, target = (str(u) for u in rng.permutation(list(LENGTHS))[:2])
    value = int(rng.integers(1, 100))
    return f"{value} {source} in {target}", {"value": value, "from_unit": source, "to_unit": target}


TOOLS = {
    "get_weather": Tool(
        _schema("get_weather", "The forecast for a city.", {
            "city": {"type": "string"}, "days_ahead": {"type": "integer", "minimum": 0, "maximum": 5}}),
        _ask_weather,
        _weather,
        lambda arguments, found: f"It will be {found['sky']} in {arguments['city']}, {found['temperature']} degrees.",
    ),
    "calculate": Tool(
        _schema("calculate", "Exact arithmetic with two whole numbers.", {
            "operation": _one_of(OPERATIONS), "a": {"type": "integer"}, "b": {"type": "integer"}}),
        _ask_sum,
        lambda arguments: {"result": OPERATIONS[arguments["operation"]][1](arguments["a"], arguments["b"])},
        lambda arguments, found: f"The result is {found['result']}.",
    ),
    "convert_currency": Tool(
        _schema("convert_currency", "An amount of money in another currency.", {
            "amount": {"type": "number", "minimum": 0}, "from": _one_of(RATES), "to": _one_of(RATES)}),
        _ask_money,
        lambda a: {"amount": round(a["amount"] / RATES[a["from"]] * RATES[a["to"]], 2)},
        lambda a, found: f"{a['amount']} {a['from']} are {found['amount']:.2f} {a['to']}.",
    ),
    "convert_length": Tool(
        _schema("convert_length", "A length in another unit.", {
            "value": {"type": "number"}, "from_unit": _one_of(LENGTHS), "to_unit": _one_of(LENGTHS)}),
        _ask_length,
        lambda a: {"value": round(a["value"] * LENGTHS[a["from_unit"]] / LENGTHS[a["to_unit"]], 4)},
        lambda a, found: f"{a['value']} {a['from_unit']} are {found['value']} {a['to_unit']}.",
    ),
}  # fmt: skip
UNNEEDED = (
    ("Hello!", "Hello! What can I do for you?"),
    ("Thank you.", "You are welcome."),
    ("What can you do?", "I can call the tools I was given and tell you what they say."),
)


def system_text(names: list[str]) -> str:
    """The tools section of Qwen's chat template, word for word."""
    signatures = "\n".join(json.dumps(TOOLS[name].schema) for name in names)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{signatures}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
        'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def _turns(rng: np.random.Generator, settings: ToolCallSettings, names: list[str]) -> list[dict[str, str]]:
    """A question, the calls, what the tools return, the answer: roles and texts."""
    if rng.random() < settings.unneeded_share:
        question, answer = pick(rng, UNNEEDED)
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    count = 2 if rng.random() < settings.parallel_share else 1
    chosen = [(name, *TOOLS[name].ask(rng)) for name in (pick(rng, names) for _ in range(count))]
    calls = [json.dumps({"name": name, "arguments": arguments}) for name, _, arguments in chosen]
    found = [TOOLS[name].run(arguments) for name, _, arguments in chosen]
    said = [TOOLS[name].say(a, result) for (name, _, a), result in zip(chosen, found, strict=True)]
    return [
        {"role": "user", "content": f"I would like to know {' and '.join(subject for _, subject, _ in chosen)}."},
        {"role": "assistant", "content": "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)},
        {
            "role": "user",
            "content": "\n".join(f"<tool_response>\n{json.dumps(r)}\n</tool_response>" for r in found),
        },
        {"role": "assistant", "content": " ".join(said)},
    ]


def build(settings: ToolCallSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        while True:
            offered = int(rng.integers(settings.tools[0], settings.tools[1] + 1))
            names = [str(name) for name in rng.permutation(list(TOOLS))[:offered]]
            turns: list[dict[str, str]] = []
            for _ in range(int(rng.integers(1, settings.turns + 1))):
                turns += _turns(rng, settings, names)
            if any("<tool_call>" in turn["content"] for turn in turns) and belongs(str(turns), held_out):
                break
        messages = [{"role": "system", "content": system_text(names)}, *turns]
        yield Record(f"{number:06d}", {"messages": messages, "domain": DOMAIN}, {})
