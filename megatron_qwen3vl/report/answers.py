"""Held-out pictures with what the model said of them, and how often it was right: ``demo.json`` in the run's folder.

    {"scores": [{"task": "reading", "measure": "exact", "own": 0.83, "exchanged": 0.01, "questions": 500}],
     "samples": [{"task": "reading", "picture": "<base64 of a PNG, JPEG or WebP>", "question": "...",
                  "right": "4711", "model": "4711", "correct": true}]}

``own`` and ``exchanged``: the score with the sample's own picture and with another's. Any member may be missing, and
whoever evaluates a run may write the file; what cannot be read is left out.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from megatron_qwen3vl.report.chart import short
from megatron_qwen3vl.report.tables import note, safe, table

MOST_SAMPLES, MOST_OF_A_TASK = 48, 8
LARGEST_PICTURE = 200_000  # bytes
_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}


def answers_section(answers: Mapping[str, Any]) -> str:
    return _scores(answers.get("scores")) + _samples(answers.get("samples"))


def _scores(scores: Any) -> str:
    rows = [
        (safe(score.get("task")), safe(score.get("measure")), *map(_number, (score.get("own"), score.get("exchanged"))),
         _number(score.get("questions")))
        for score in (scores if isinstance(scores, list) else [])
        if isinstance(score, dict)
    ]
    heads = ("task", "measure", "its own picture", "another's picture", "questions")
    return table(heads, rows, left=(0, 1)) if rows else ""


def _number(value: Any) -> str:
    return short(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else "–"


def _samples(samples: Any) -> str:
    shown: list[str] = []
    of_task: dict[str, int] = {}
    for sample in samples if isinstance(samples, list) else []:
        if not isinstance(sample, dict) or len(shown) >= MOST_SAMPLES:
            continue
        task = str(sample.get("task"))
        of_task[task] = of_task.get(task, 0) + 1
        if of_task[task] <= MOST_OF_A_TASK:
            shown.append(_sample(task, sample))
    if not shown:
        return ""
    total = sum(of_task.values())
    return f'<div class="answers">{"".join(shown)}</div>' + (
        note(f"{len(shown)} of {total:,}, the first of each task.") if total > len(shown) else ""
    )


def _sample(task: str, sample: Mapping[str, Any]) -> str:
    correct = sample.get("correct")
    mark = {True: '<b class="yes">✓</b>', False: '<b class="no">✗</b>'}.get(correct, "") if correct in (0, 1) else ""
    lines = [("asked", sample.get("question")), ("right", sample.get("right")), ("model", sample.get("model"))]
    said = "".join(f"<div><dt>{name}</dt><dd>{safe(text)}</dd></div>" for name, text in lines if text is not None)
    caption = f"<figcaption>{mark} {safe(task)}</figcaption>"
    return f"<figure>{_picture(sample.get('picture'))}{caption}<dl>{said}</dl></figure>"


def _picture(encoded: Any) -> str:
    """Nothing where it is no picture of a known kind, or too large for the page."""
    if not isinstance(encoded, str) or len(encoded) > LARGEST_PICTURE * 4 // 3 + 4:
        return ""
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return ""
    kind = next((name for start, name in _KINDS.items() if data.startswith(start)), None)
    clean = base64.b64encode(data).decode()
    return f'<img alt="held-out picture" src="data:image/{kind};base64,{clean}">' if kind else ""
