"""Pictures with blocks of known colours, imports of small sources, and what the shards hold, read without the importer.

Where a thing is, is read off the decoded pixels of what was written into the shard: a block of its own colour.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from faults_data import OVERRIDES
from PIL import Image

from megatron_qwen3vl.cli import main
from megatron_qwen3vl.data.vision import decode
from megatron_qwen3vl.importers.frame import Format
from megatron_qwen3vl.importers.run import Import, SplitSummary, run_import
from megatron_qwen3vl.importers.settings import CommonSettings, read_settings
from megatron_qwen3vl.recipes.reader import ReadSample, read_samples

COLOURS = ((220, 20, 20), (20, 220, 20), (20, 20, 220), (220, 220, 20), (220, 20, 220), (20, 220, 220))
GREY = (128, 128, 128)
Edges = tuple[float, float, float, float]  # left, top, right, bottom in stored pixels


def draw(path: Path, size: tuple[int, int], blocks: Sequence[Edges] = (), orientation: int = 1) -> None:
    """A file whose n-th block has the n-th colour; ``size`` and ``blocks`` are about the stored pixels."""
    width, height = size
    pixels = np.full((height, width, 3), GREY, np.uint8)
    for colour, (left, top, right, bottom) in zip(COLOURS, blocks, strict=False):
        pixels[max(round(top), 0) : round(bottom), max(round(left), 0) : round(right)] = colour
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(pixels).save(path, exif=exif, **options)


def block(image: bytes, number: int) -> list[float]:
    """Where the decoded picture shows the block: left, top, right, bottom in thousandths."""
    pixels = decode(image).astype(int)
    rows, columns = np.nonzero(np.abs(pixels - COLOURS[number]).max(-1) < 60)
    height, width = pixels.shape[:2]
    return [
        columns.min() * 1000 / width,
        rows.min() * 1000 / height,
        (columns.max() + 1) * 1000 / width,
        (rows.max() + 1) * 1000 / height,
    ]


def do_import(chosen: Format, source: Path, out: Path, *words: str) -> tuple[list[ReadSample], SplitSummary]:
    """Everything goes to the training split."""
    common, settings = read_settings((CommonSettings, chosen.settings), ["held_out=0", *words])
    (summary,) = run_import(Import(chosen, source, out, settings, common), lambda _: None)
    return (list(read_samples(out / "train")) if summary.mark.samples else []), summary


def trains(chosen: Format, source: Path, folder: Path, capsys: pytest.CaptureFixture[str], *variants: str) -> None:
    """The command imports and indexes, `data inspect` finds nothing amiss, and one step uses every sample.

    ``variants``: a key=value each, for imports that train together; one import without any by default.
    """
    keys, sources = set(), []
    for number, word in enumerate(variants or ("limit=null",)):
        out = folder / f"shards{number}"
        assert main(["data", "import", chosen.name, str(source), str(out), "held_out=0", word]) == 0
        found = {f"imported{number}/00000/{sample.key}" for sample in read_samples(out / "train")}
        assert list(out.glob("train/*.idx"))
        capsys.readouterr()
        assert main(["data", "inspect", str(out / "train")]) == 0
        told = capsys.readouterr().out
        assert re.search(rf"^ *samples +{len(found)}$", told, re.M) and "cannot be used" not in told, told
        limits = {"max_pixels": 4096, "min_pixels": 1024}
        sources.append({"name": f"imported{number}", "shards": str(out / "train"), "weight": 1.0, **limits})
        keys |= found
    mixture = folder / "mixture.yaml"
    mixture.write_text(yaml.safe_dump({"sources": sources}))
    stage = {"mixture": mixture, "steps": 1, "sequence_length": 8192, "global_batch_size": 1}
    stages = [f"stages.s1.{name}={value}" for name, value in stage.items()]
    more = ["run.stages=[s1]", "data.workers=0", "run.trace_samples=true", f"run.dir={folder}/run"]
    assert main(["pretrain", *OVERRIDES, *stages, *more]) == 0
    (line,) = (folder / "run/metrics.jsonl").read_text().splitlines()
    step = json.loads(line)
    (traced,) = map(json.loads, (folder / "run/samples.jsonl").read_text().splitlines())
    assert set(traced["keys"]) == keys and step["loss_tokens"] > 0 and 0 < step["loss"] < 100
    quarantine = folder / "run/quarantine.jsonl"
    assert not quarantine.exists() or not quarantine.read_text()


def left_out(summary: SplitSummary) -> dict[str, str]:
    """Key -> why."""
    rows = [json.loads(line) for line in summary.path_of_named.read_text().splitlines()]
    return {row["key"]: row.get("left_out") or row["note"] for row in rows}


def answered(sample: ReadSample) -> list[tuple[str, Any, int | None]]:
    """(question, the answer's JSON or text, the count behind the JSON) of each turn."""
    found = []
    for question, answer in sample.turns:
        body, _, count = answer.rpartition("\n") if re.search(r"[\]}]\n\d+$", answer) else (answer, "", "")
        found.append((question, json.loads(body) if body[0] in "[{" else body, int(count) if count else None))
    return found


def entries(answer: Any) -> list[dict[str, Any]]:
    """Of an answer in JSON: one object or a list of them."""
    return answer if isinstance(answer, list) else [answer]


def named_box(question: str) -> list[int] | None:
    """The box that a question gives."""
    found = re.search(r"\[(\d+), (\d+), (\d+), (\d+)\]", question)
    return [int(number) for number in found.groups()] if found else None


def check_boxes(sample: ReadSample, expected: Mapping[str, Sequence[Sequence[float]]]) -> int:
    """Every box of every answer is one of its label's (within one thousandth), every answer has all of its label's,
    counts are their numbers, and names stand for boxes of theirs. Returns the number of boxes and names checked."""
    checked = 0
    for question, answer, count in answered(sample):
        if isinstance(answer, str):
            box = named_box(question)
            if box is None:  # a count
                assert answer.isdigit() and any(
                    len(boxes) == int(answer) for label, boxes in expected.items() if label in question
                )
            else:
                assert any(near(box, other) for other in expected[answer]), (question, answer)
            checked += 1
            continue
        by_label: dict[str, list[list[int]]] = {}
        for entry in entries(answer):
            by_label.setdefault(entry["label"], []).append(entry["bbox_2d"])
        for label, boxes in by_label.items():
            assert len(boxes) == len(expected[label]), (question, label)
            for box in boxes:
                assert any(near(box, other) for other in expected[label]), (question, label, box, expected[label])
            checked += len(boxes)
        assert count is None or count == sum(map(len, by_label.values()))
    return checked


def near(box: Sequence[float], other: Sequence[float], within: float = 1.0) -> bool:
    return max(abs(a - b) for a, b in zip(box, other, strict=True)) <= within
