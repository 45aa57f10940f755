"""Captions with a hint: the alternative text is part of the truth and less than the caption."""

from __future__ import annotations

import re
from pathlib import Path

from built import built


def test_alternative_texts_say_a_part_of_the_caption(tmp_path: Path) -> None:
    hints = 0
    for sample in built("captions", tmp_path):
        if "messages" not in sample.body:
            continue
        ((question, caption),) = sample.turns
        if (hint := re.match(r"Alt text: ([\w ]+?)(?:\.jpg| \(\d+\))?\n", question)) is not None:
            hints += 1
            words = re.findall(r"\w+", caption.lower())
            assert all(words.count(word) >= hint[1].split().count(word) for word in hint[1].split()), (
                question,
                caption,
            )
            assert len(hint[1]) < len(caption)
    assert hints > 8
