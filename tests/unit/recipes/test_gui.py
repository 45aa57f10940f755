"""GUI: what a screen shows at a place, and that each step of a trace changed what it clicked, read from the pixels."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from built import built
from scipy import ndimage
from seen import find_words, pixels

from megatron_qwen3vl.recipes.reader import ReadSample

OTHERS = {"field": "button", "button": "tick", "tick": "field"}
CALL = re.compile(r"<tool_call>\n(.+?)\n</tool_call>")


def region(picture: np.ndarray, x: int, y: int) -> tuple[int, int, int, int]:
    """The smallest box around a place that an area of one colour fills from edge to edge; letters are too small."""
    window = slice(max(0, y - 4), y + 5), slice(max(0, x - 4), x + 5)
    boxes = [(0, 0, picture.shape[1], picture.shape[0])]
    for colour in np.unique(picture[window].reshape(-1, 3), axis=0):
        labels, _ = ndimage.label((picture == colour).all(-1))
        found = ndimage.find_objects(labels)
        for label in set(labels[window].ravel().tolist()) - {0}:
            rows, columns = found[label - 1]
            if rows.start <= y < rows.stop and columns.start <= x < columns.stop:
                boxes.append((columns.start, rows.start, columns.stop, rows.stop))
    return min((b for b in boxes if min(b[2] - b[0], b[3] - b[1]) >= 9), key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))


def is_element(picture: np.ndarray, kind: str, label: str, point: tuple[int, int]) -> bool:
    """Whether an element of this kind and label is at a place in pixels."""
    left, top, right, bottom = region(picture, *point)
    size = (right - left, bottom - top)
    middle = (top + bottom) / 2
    spots = [(x, y) for x, y in find_words(picture, label, 10, 0.8) if abs(y - middle) <= 4]
    if kind == "button":
        return 14 <= size[1] <= 18 and size[0] < 60 and any(left < x < right for x, _ in spots)
    if kind == "field":
        return 11 <= size[1] <= 15 and 50 <= size[0] <= 80 and any(left - 45 < x < left for x, _ in spots)
    return max(size) <= 12 and any(right < x < right + 50 for x, _ in spots)


def wrong_answer(picture: np.ndarray, question: str, answer: str) -> bool:
    """Whether an answer about one screen is false."""
    height, width = picture.shape[:2]

    def place(numbers: list[int]) -> tuple[int, int]:
        return min(int(numbers[0] * width / 1000), width - 1), min(int(numbers[1] * height / 1000), height - 1)

    if (at := re.search(r"at \[(\d+), (\d+)\]", question)) is not None:
        named = re.fullmatch(r'(\w+) "(.+)"', answer)
        return named is None or not is_element(picture, named[1], named[2], place([int(at[1]), int(at[2])]))
    if answer.startswith("{"):
        entry = json.loads(answer)
        named = re.fullmatch(r'(\w+) "(.+)"', entry["label"])
        asked = re.search(r"to (?:change|switch|press) (.+?)(?: on or off)?\?", question)
        assert asked is not None
        return (
            named is None
            or named[2] != asked[1]
            or not is_element(picture, named[1], named[2], place(entry["point_2d"]))
        )
    if (ticked := re.search(r"Is (.+) ticked", question)) is not None:
        (x, y), *_ = find_words(picture, ticked[1], 10, 0.8)
        row = picture[y - 4 : y + 5, :x]
        vivid = row.max(-1).astype(int) - row.min(-1) > 120
        return answer != ("Yes." if vivid.sum() > 12 else "No.")
    field = re.search(r"field (\w+) say", question)
    assert field is not None, question
    (x, y), *_ = (p for p in find_words(picture, field[1], 10, 0.8) if p[0] < 40)
    if answer == "Nothing.":
        inside = picture[y - 3 : y + 4, 62:90]  # right of every indent, left of every field's end
        return bool((inside != inside[0, 0]).any())
    return not any(abs(at_y - y) <= 3 and at_x > x for at_x, at_y in find_words(picture, answer, 10, 0.8))


def wrong_trace(sample: ReadSample) -> list[str]:
    """What is wrong with the steps of a task."""
    screens = [pixels(file) for file in sample.images]
    said = [m["content"] for m in sample.body["messages"] if m["role"] == "assistant"]
    task = str(sample.body["messages"][1]["content"][1]["text"])
    actions = [json.loads(CALL.findall(words)[0]) for words in said]
    problems = [f"{a}: not this tool" for a in actions if a["name"] != "computer_use"]
    steps = [a["arguments"] for a in actions]
    if steps[-1] != {"action": "terminate", "status": "success"} or len(screens) != len(steps):
        problems.append("does not end, or a screen is missing")
    for step, before, after in zip(steps, screens, screens[1:], strict=False):
        rows, columns = np.nonzero((before != after).any(-1))
        if step["action"] == "type":
            if step["text"] not in task or not find_words(after, step["text"], 10, 0.8):
                problems.append(f"{step}: not written")
            continue
        x, y = (n / 1000 * side for n, side in zip(step["coordinate"], before.shape[1::-1], strict=True))
        near = len(rows) and columns.min() - 3 <= x <= columns.max() + 3 and rows.min() - 3 <= y <= rows.max() + 3
        pressed = any(find_words(after, m, 10, 0.8) for m in ("Saved.", "Cancelled.", "Reset.", "No help yet."))
        if not near and not (step is steps[-2] and pressed):
            problems.append(f"{step}: nothing happened there")
    wanted = re.findall(r"et \w+ to (\w+)", task)
    typed = [step["text"] for step in steps if step["action"] == "type"]
    button = re.search(r"[Pp]ress (\w+)\.", task)
    assert button is not None
    x, y = (int(n / 1000 * side) for n, side in zip(steps[-2]["coordinate"], screens[0].shape[1::-1], strict=True))
    if wanted != typed or not is_element(screens[-2], "button", button[1], (x, y)):
        problems.append(f"{task}: {typed} typed, other button")
    for label, state in re.findall(r"witch ([\w ]+?) (on|off)", task):
        if wrong_answer(screens[-1], f"Is {label} ticked?", "Yes." if state == "on" else "No."):
            problems.append(f"{label} is not {state}")
    return problems


def screen_turns(sample: ReadSample) -> list[tuple[str, str]]:
    return sample.turns if sample.body["domain"] == "gui" else []


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[ReadSample]:
    return built("gui", tmp_path_factory.mktemp("gui"))


def test_answers_are_what_the_screen_shows(samples: list[ReadSample]) -> None:
    assert len(samples) == 200
    wrong, kinds = [], set()
    for sample in samples:
        for question, answer in screen_turns(sample):
            kinds.add(" ".join(question.split()[:2]))
            if wrong_answer(pixels(sample.images[0]), question, answer):
                wrong.append(f"{sample.key} {question} {answer}")
    assert not wrong
    assert {"Which element", "Where do", "What does"} < kinds


def test_every_step_of_a_task_does_what_it_says(samples: list[ReadSample]) -> None:
    traces = [sample for sample in samples if sample.body["domain"] == "gui_trace"]
    assert len(traces) > 40
    assert not [(sample.key, problem) for sample in traces for problem in wrong_trace(sample)]


def test_false_answers_and_steps_are_found(samples: list[ReadSample]) -> None:
    missed = []
    for sample in samples[:60]:
        for question, answer in screen_turns(sample):
            if answer.startswith("{"):
                entry = json.loads(answer)
                lie = json.dumps(entry | {"point_2d": [(n + 400) % 1000 for n in entry["point_2d"]]})
            elif answer in ("Yes.", "No."):
                lie = "No." if answer == "Yes." else "Yes."
            else:
                kind, _, label = answer.partition(" ")
                lie = f"{OTHERS[kind]} {label}" if kind in OTHERS else "Zoe"
            if not wrong_answer(pixels(sample.images[0]), question, lie):
                missed.append(f"{question} {lie}")
    for sample in [s for s in samples if s.body["domain"] == "gui_trace"][:15]:
        for message in sample.body["messages"]:
            if message["role"] == "assistant" and "left_click" in message["content"]:
                message["content"] = re.sub(
                    r"\[(\d+), ", lambda m: f"[{(int(m[1]) + 500) % 1000}, ", message["content"]
                )
        if not wrong_trace(sample):
            missed.append(str(sample.body["messages"]))
    assert not missed
