"""Rows of any JSON at all: each is imported or named, none ends the import."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import webdataset
from shard_helpers import picture
from text_and_media_sets import mmc4_row, obelics_row, run, write_activitynet

NUMBERS = [0, -1, 3, 10**30, 1.5, -0.0, float("nan"), float("inf")]
ODD = [None, True, False, *NUMBERS, "", "x", "\ud800", "../x", "\0", "a" * 300]
COUNT = 400
FIELDS = {
    "jsonl": ["text", "messages", "role", "content", "from", "value"],
    "obelics": ["images", "texts"],
    "mmc4": ["text_list", "image_info", "image_name", "matched_text_index", "matched_sim"],
    "activitynet": ["duration", "timestamps", "sentences"],
    "pairs": ["caption", "similarity", "width"],
}
GOOD: dict[str, dict[str, Any]] = {
    "jsonl": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}], "text": "x"},
    "obelics": obelics_row(["before", 0, "after"]),
    "mmc4": mmc4_row(["One.", "Two."], [("a.jpg", 1, 0.3)]),
    "activitynet": {"duration": 4.0, "timestamps": [[0, 1], [1, 2]], "sentences": ["a", "b"]},
    "pairs": {"caption": "words", "similarity": 0.3, "width": 40},
}


def spoiled(rng: random.Random, value: Any, fields: list[str]) -> Any:
    """The value with one or two places of it, at any depth, made something else."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        changed = {**value, name: spoiled(rng, value[name], fields)}
        if rng.random() < 0.2:
            del changed[name]
        if rng.random() < 0.2:
            changed[rng.choice(fields)] = strange(rng, fields, 2)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return [*value[:place], spoiled(rng, value[place], fields), *value[place + rng.randrange(2) :]]
    return strange(rng, fields, 2)


def strange(rng: random.Random, fields: list[str], depth: int) -> Any:
    kind = rng.random()
    if depth == 0 or kind < 0.6:
        return rng.choice(ODD)
    if kind < 0.8:
        return [strange(rng, fields, depth - 1) for _ in range(rng.randrange(3))]
    return {rng.choice(fields): strange(rng, fields, depth - 1) for _ in range(rng.randrange(3))}


@pytest.mark.parametrize("name", list(GOOD))
def test_no_row_ends_the_import(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    rows = [GOOD[name], *(spoiled(rng, GOOD[name], FIELDS[name]) for _ in range(COUNT - 1))]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(picture(40, 40, "JPEG"))
    words: tuple[str, ...] = ()
    if name == "activitynet":
        write_activitynet(tmp_path / "v", 1)
        video = next((tmp_path / "v" / "videos").iterdir())
        for number in range(COUNT):
            (tmp_path / "images" / f"v_{number}.mp4").hardlink_to(video)
        source, words = tmp_path / "a.json", (f"videos={tmp_path / 'images'}",)
        written = json.dumps({f"v_{n}": row for n, row in enumerate(rows)})
        for number in ("NaN", "Infinity", str(10**30)):  # ijson reads strict JSON, and integers of 64 bits
            written = written.replace(number, "7")
        source.write_text(written)
    elif name == "pairs":
        source, words = tmp_path / "p", ("caption=caption", "min_similarity=0.1", "where=width>3")
        source.mkdir()
        with webdataset.TarWriter(str(source / "0.tar")) as writer:
            for number, row in enumerate(rows):
                jpg = picture(40, 40, "JPEG")
                writer.write({"__key__": f"{number}", "jpg": jpg, "json": json.dumps(row).encode()})
    else:
        source = tmp_path / "a.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = () if name == "jsonl" else (f"images={tmp_path / 'images'}", "min_images=0")
    (summary,) = run(name, source, tmp_path / "out", "held_out=0", *words)
    mark = summary.mark
    assert mark.entries == COUNT == mark.samples + mark.left_out + sum(mark.unwanted.values())
    assert mark.samples > 20 and mark.left_out + sum(mark.unwanted.values()) > 100
