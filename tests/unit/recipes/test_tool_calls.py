"""Tool calls validate against the schemas on offer and say what was asked; answers repeat what the tools returned."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from built import built

from megatron_qwen3vl.recipes.reader import ReadSample

CALL = re.compile(r"<tool_call>\n(.+?)\n</tool_call>")
RESPONSE = re.compile(r"<tool_response>\n(.+?)\n</tool_response>")
TYPES = {"string": str, "integer": int, "number": (int, float), "object": dict}
WORDS = {"plus": "add", "minus": "subtract", "times": "multiply"}


def violations(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    """What JSON Schema says against a value; the keywords that the tools use."""
    assert set(schema) <= {"type", "enum", "minimum", "maximum", "properties", "required", "additionalProperties"}
    if not isinstance(value, TYPES[schema["type"]]) or isinstance(value, bool):
        return [f"{path}: not a {schema['type']}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: {value} is not one of {schema['enum']}")
    if value_below(value, schema):
        found.append(f"{path}: {value} is out of range")
    if schema["type"] == "object":
        properties = schema["properties"]
        found += [f"{path}.{key}: missing" for key in schema["required"] if key not in value]
        found += [f"{path}.{key}: unknown" for key in value if key not in properties]
        found += [
            v for key in value if key in properties for v in violations(value[key], properties[key], f"{path}.{key}")
        ]
    return found


def value_below(value: Any, schema: dict[str, Any]) -> bool:
    return ("minimum" in schema and value < schema["minimum"]) or ("maximum" in schema and value > schema["maximum"])


def wrong(messages: list[dict[str, str]]) -> list[str]:
    """What is wrong with a conversation."""
    system, *turns = messages
    assert system["role"] == "system" and [t["role"] for t in turns] == ["user", "assistant"] * (len(turns) // 2)
    listed = re.search(r"<tools>\n(.+?)\n</tools>", system["content"], re.S)
    assert listed is not None
    schemas = [json.loads(line)["function"] for line in listed.group(1).split("\n")]
    offered = {schema["name"]: schema["parameters"] for schema in schemas}
    problems: list[str] = []
    for asked, answer in zip(turns[::2], turns[1::2], strict=True):
        calls = [json.loads(call) for call in CALL.findall(answer["content"])]
        for call in calls:
            if call["name"] not in offered:
                problems.append(f"{call['name']} is not on offer")
                continue
            problems += violations(call["arguments"], offered[call["name"]], call["name"])
            words = asked["content"].replace(".", " ").split()
            words += [WORDS[word] for word in words if word in WORDS]
            problems += [f"{v} was not asked for" for v in call["arguments"].values() if str(v) not in words]
        results = [json.loads(response) for response in RESPONSE.findall(asked["content"])]
        said = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?", answer["content"])]
        for result in results:
            for value in result.values():
                known = value in answer["content"] if isinstance(value, str) else any(
                    abs(n - value) <= 1e-9 * abs(value) for n in said)  # fmt: skip
                problems += [] if known else [f"{value} is not in: {answer['content']}"]
    for before, after in zip(turns[1::2], turns[2::2], strict=False):
        calls = CALL.findall(before["content"])
        responses = RESPONSE.findall(after["content"])
        if len(calls) != len(responses):
            problems.append(f"{len(calls)} calls, {len(responses)} responses")
        for call, response in zip(map(json.loads, calls), map(json.loads, responses), strict=False):
            if call["name"] in offered and not violations(call["arguments"], offered[call["name"]], call["name"]):
                problems += false_result(call, response)
    return problems


def false_result(call: dict[str, Any], response: dict[str, Any]) -> list[str]:
    """Arithmetic and lengths, computed again."""
    a = call["arguments"]
    if call["name"] == "calculate":
        truth = {"add": a["a"] + a["b"], "subtract": a["a"] - a["b"], "multiply": a["a"] * a["b"]}[a["operation"]]
        return [] if response == {"result": truth} else [f"{call}: {response}"]
    if call["name"] == "convert_length":
        metres = {"m": 1, "km": 1000, "cm": 0.01, "mile": 1609.344, "foot": 0.3048}
        truth = a["value"] * metres[a["from_unit"]] / metres[a["to_unit"]]
        return [] if abs(response["value"] - truth) < 1e-4 else [f"{call}: {response}"]
    return []


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[ReadSample]:
    return built("tool_calls", tmp_path_factory.mktemp("tool_calls"))


def test_calls_are_valid_and_answers_follow(samples: list[ReadSample]) -> None:
    assert len(samples) == 200
    assert not [problem for sample in samples for problem in wrong(sample.body["messages"])]
    calls = [json.loads(c)["name"] for s in samples for m in s.body["messages"] for c in CALL.findall(m["content"])[-1:]
             if m["role"] == "assistant"]  # fmt: skip
    assert len(set(calls)) == 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r'"(a|value|amount|days_ahead)": (\d+)', lambda m: f'"{m[1]}": {int(m[2]) + 1}'),  # another number
        (r'"(a|value|amount|days_ahead)": (\d+)', lambda m: f'"{m[1]}": "{m[2]}"'),  # a text
        (r'"arguments": \{"\w+"', lambda m: '"arguments": {"what"'),  # an argument that is not in the schema
        (r'"name": "\w+"', lambda m: '"name": "guess"'),  # a tool that was not offered
        (r"(.+)([1-9])(.*)$", lambda m: f"{m[1]}x{m[3]}"),  # an answer that says another number
    ],
)
def test_false_calls_are_found(old: str, new: Any, samples: list[ReadSample]) -> None:
    changed = 0
    for sample in samples[:60]:
        messages = [dict(m) for m in sample.body["messages"]]
        wanted = "<tool_call>" in old or '"' in old
        for message in messages[1:]:
            if message["role"] == "assistant" and ("<tool_call>" in message["content"]) == wanted:
                before = message["content"]
                message["content"] = re.sub(old, new, before, count=1)
                if message["content"] != before:
                    changed += 1
                    assert wrong(messages), message["content"]
                    break
    assert changed > 25
