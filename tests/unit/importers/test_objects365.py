"""Objects365's JSON as published (v2), read by pycocotools too; its flags and its folders of patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from public_sets import answered, block, check_boxes, do_import, draw, entries, trains
from pycocotools.coco import COCO as Reference

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.objects365 import OBJECTS365

SIZE = (80, 60)
BLOCKS = [(4.0, 4.0, 30.0, 40.0), (40.0, 10.0, 70.0, 50.0), (32.0, 50.0, 38.0, 58.0)]


def write(folder: Path, fake: int = 0) -> Path:
    """Two people, one of them perhaps on a poster, and a ``Street Lights``."""
    def entry(number: int, category: int, **flags: int) -> dict[str, Any]:
        left, top, right, bottom = BLOCKS[number]
        return {"id": 51 + number, "iscrowd": 0, "isfake": 0, "area": (right - left) * (bottom - top), "isreflected": 0,
                "bbox": [left, top, right - left, bottom - top], "image_id": 420917, "category_id": category,
                **flags}  # fmt: skip

    tree = {
        "images": [{"height": 60, "id": 420917, "license": 5, "width": 80,
                    "file_name": "images/v1/patch8/objects365_v1_00420917.jpg", "url": ""}],
        "annotations": [entry(0, 1), entry(1, 1, isfake=fake), entry(2, 7)],
        "categories": [{"name": "Person", "id": 1}, {"name": "Street Lights", "id": 7}],
        "licenses": [{"name": "CC BY", "id": 5, "url": ""}],
    }  # fmt: skip
    path = folder / "annotations/zhiyuan_objv2_train.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return path


@pytest.mark.parametrize("where", ["images/train/patch8", "train/images/v1/patch8", "train/patch8"])
def test_boxes_are_the_pixels_in_any_of_the_published_layouts(tmp_path: Path, where: str) -> None:
    draw(tmp_path / where / "objects365_v1_00420917.jpg", SIZE, BLOCKS)
    source = write(tmp_path)
    reference = Reference(str(source))
    (sample,), _ = do_import(OBJECTS365, source, tmp_path / "out", "turns=6")
    assert sample.key == "000000420917"
    shown = [block(sample.images[0], number) for number in range(3)]
    boxes = [reference.anns[51 + number]["bbox"] for number in range(3)]
    assert [[round(left * 80 / 1000), round(top * 60 / 1000)] for left, top, _, _ in shown] == [b[:2] for b in boxes]
    assert check_boxes(sample, {"person": shown[:2], "street lights": shown[2:]})


def test_flags_can_leave_a_label_out(tmp_path: Path) -> None:
    draw(tmp_path / "train/patch8/objects365_v1_00420917.jpg", SIZE, BLOCKS)
    words = ["turns=6", "tasks=categories,label,count"]
    (kept,), _ = do_import(OBJECTS365, write(tmp_path, fake=1), tmp_path / "kept", *words, "lower=false")
    (left,), _ = do_import(OBJECTS365, write(tmp_path, fake=1), tmp_path / "left", *words, "leave_out=fake,reflected")
    assert any("Person" in question for question, _ in kept.turns)
    assert not any("person" in question for question, _ in left.turns)
    for _, answer, _ in answered(left):
        assert isinstance(answer, str) or {entry["label"] for entry in entries(answer)} == {"street lights"}
    with pytest.raises(UserError, match="leave_out: faek is unknown"):
        do_import(OBJECTS365, write(tmp_path), tmp_path / "no", "leave_out=faek")


def test_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "train/patch8/objects365_v1_00420917.jpg", SIZE, BLOCKS)
    trains(OBJECTS365, write(tmp_path), tmp_path, capsys)
