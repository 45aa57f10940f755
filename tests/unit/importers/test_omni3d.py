"""Omni3D's JSON as its page describes it: cuboids compared by their corners, which the answers' numbers must give."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from public_sets import answered, block, do_import, draw, entries, left_out, trains
from pycocotools.coco import COCO as Reference

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.omni3d import OMNI3D

SIZE = (160, 120)
K = [[200.0, 0.0, 70.0], [0.0, 200.0, 66.0], [0.0, 0.0, 1.0]]  # its axis is not the picture's middle
FOCAL = 80 / math.tan(math.radians(30))  # of 60 degrees across 160 pixels
CENTRES = [(-0.8, 0.3, 4.0), (1.1, -0.2, 6.0), (0.4, 0.6, 5.0)]
DIMENSIONS = [(0.5, 0.9, 1.4), (0.8, 1.1, 0.6), (0.4, 0.3, 0.7)]  # width, height, length


def some_rotation(seed: int) -> np.ndarray:
    matrix, upper = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(upper))
    return matrix * np.linalg.det(matrix)


def vertices(centre: Sequence[float], dimensions: Sequence[float], matrix: np.ndarray) -> np.ndarray:
    """[8, 3] in the order of the page's drawing: v0 to v3 the front, v4 to v7 the back, v0 and v4 the upper left."""
    width, height, length = dimensions
    x = np.array([-1, 1, 1, -1, -1, 1, 1, -1]) * length / 2
    y = np.array([-1, -1, 1, 1, -1, -1, 1, 1]) * height / 2
    z = np.array([-1, -1, -1, -1, 1, 1, 1, 1]) * width / 2
    return (matrix @ np.stack([x, y, z])).T + np.array(centre)


def corners_of(numbers: Sequence[float]) -> np.ndarray:
    """Of an answer, one coordinate at a time: about x by pitch, y by yaw, z by roll, in shares of 180 degrees."""
    x_centre, y_centre, z_centre, x_size, y_size, z_size, roll, pitch, yaw = numbers
    found = []
    for x in (-x_size / 2, x_size / 2):
        for y in (-y_size / 2, y_size / 2):
            for z in (-z_size / 2, z_size / 2):
                a = math.pi * pitch
                y1, z1 = y * math.cos(a) - z * math.sin(a), y * math.sin(a) + z * math.cos(a)
                a = math.pi * yaw
                x2, z2 = x * math.cos(a) + z1 * math.sin(a), -x * math.sin(a) + z1 * math.cos(a)
                a = math.pi * roll
                x3, y3 = x2 * math.cos(a) - y1 * math.sin(a), x2 * math.sin(a) + y1 * math.cos(a)
                found.append((x3 + x_centre, y3 + y_centre, z2 + z_centre))
    return np.array(found)


def apart(some: np.ndarray, others: np.ndarray) -> float:
    """How far the worst corner is from its nearest, both ways."""
    between = np.linalg.norm(some[:, None] - others[None], axis=-1)
    return float(max(between.min(0).max(), between.min(1).max()))


def annotation(number: int, category: int, seed: int = 0, **changes: Any) -> dict[str, Any]:
    matrix = some_rotation(seed + number)
    return {
        "id": number, "image_id": 11, "dataset_id": 3, "category_id": category, "category_name": "", "valid3D": True,
        "bbox2D_tight": [-1, -1, -1, -1], "bbox2D_proj": [0.0, 0.0, 9.0, 9.0], "bbox2D_trunc": [0.0, 0.0, 9.0, 9.0],
        "bbox3D_cam": vertices(CENTRES[number], DIMENSIONS[number], matrix).tolist(), "center_cam": CENTRES[number],
        "dimensions": DIMENSIONS[number], "R_cam": matrix.tolist(), "behind_camera": False, "visibility": -1,
        "truncation": 0.0, "segmentation_pts": -1, "lidar_pts": -1, "depth_error": -1, **changes,
    }  # fmt: skip


def write(folder: Path, annotations: Sequence[dict[str, Any]], **image: Any) -> Path:
    """``datasets/Omni3D/SUNRGBD_train.json``; a block around the place where each centre is seen."""
    seen = [(200 * x / z + 70, 200 * y / z + 66) for x, y, z in CENTRES]
    draw(folder / "datasets/SUNRGBD/kv1/img.jpg", SIZE, [(x - 5, y - 5, x + 5, y + 5) for x, y in seen])
    tree = {
        "info": {"id": 3, "source": "SUNRGBD", "name": "SUNRGBD Train", "split": "Train", "version": "0.1", "url": ""},
        "images": [{"id": 11, "dataset_id": 3, "width": 160, "height": 120, "file_path": "SUNRGBD/kv1/img.jpg", "K": K,
                    "src_90_rotate": 0, "src_flagged": False, **image}],
        "categories": [{"id": 5, "name": "chair", "supercategory": ""}, {"id": 9, "name": "table"}],
        "annotations": list(annotations),
    }  # fmt: skip
    path = folder / "datasets/Omni3D/SUNRGBD_train.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return path


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_true_numbers_give_the_annotated_corners(tmp_path: Path, seed: int) -> None:
    source = write(tmp_path, [annotation(0, 5, seed), annotation(1, 5, seed), annotation(2, 9, seed)])
    reference = Reference(str(source))
    (sample,), _ = do_import(OMNI3D, source, tmp_path / "out", "camera=true", "turns=3")
    assert sample.body["domain"] == "grounding_3d"
    told = re.search(r"sees ([\d.]+) degrees across", sample.turns[0][0])
    assert told and float(told[1]) == pytest.approx(math.degrees(2 * math.atan(80 / 200)), abs=0.05)
    assert "[438, 550]" in sample.turns[0][0]  # the axis: 70 of 160, 66 of 120
    expected = {"chair": [0, 1], "table": [2]}
    checked = 0
    for question, answer, _ in answered(sample):
        by_label: dict[str, list[np.ndarray]] = {}
        for entry in entries(answer):
            by_label.setdefault(entry["label"], []).append(corners_of(entry["bbox_3d"]))
        assert set(by_label) == {label for label in expected if label in question.split("JSON")[0]}
        for label, cuboids in by_label.items():
            known = [np.array(reference.anns[n]["bbox3D_cam"]) for n in expected[label]]
            assert len(cuboids) == len(known)
            for cuboid in cuboids:
                # centimetres, and half a thousandth of 180 degrees over a metre
                assert min(apart(cuboid, each) for each in known) < 0.02
                checked += 1
    assert checked >= 3


def test_the_virtual_camera_sees_it_at_the_same_place_and_as_large(tmp_path: Path) -> None:
    source = write(tmp_path, [annotation(0, 5), annotation(2, 9)])
    (sample,), _ = do_import(OMNI3D, source, tmp_path / "out", "turns=3")
    assert "The camera sees 60 degrees across. " in sample.turns[0][0]
    assert all("degrees across" not in question for question, _ in sample.turns[1:])
    place = {"chair": 0, "table": 2}
    for entry in [entry for _, answer, _ in answered(sample) for entry in entries(answer)]:
        number = place[entry["label"]]
        x, y, z, *sizes = entry["bbox_3d"][:6]
        across, down = FOCAL * x / z + 80, FOCAL * y / z + 60  # its axis is the middle
        left, top, right, bottom = block(sample.images[0], number)
        assert left < across * 1000 / 160 < right and top < down * 1000 / 120 < bottom
        assert z == pytest.approx(CENTRES[number][2] * FOCAL / 200, abs=0.006)
        width, height, length = DIMENSIONS[number]
        assert sizes == [length, height, width]
        assert FOCAL / z == pytest.approx(200 / CENTRES[number][2], rel=0.003)  # pixels of a metre there


@pytest.mark.parametrize(
    "change",
    [
        {"valid3D": False, "center_cam": [-1, -1, -1], "bbox3D_cam": -1, "R_cam": -1},
        {"behind_camera": True},
        {"truncation": 0.5},
        {"visibility": 0.1},
        {"depth_error": 0.7},
        {"lidar_pts": 0},
        {"segmentation_pts": 0},
        {"dimensions": [0.4, 0.0, 0.7]},
        {"center_cam": [0.4, 0.6, 500.0]},
    ],
)
def test_an_unreliable_box_takes_its_label_out(tmp_path: Path, change: dict[str, Any]) -> None:
    source = write(tmp_path, [annotation(0, 5), annotation(1, 9), annotation(2, 9, **change)])
    (sample,), summary = do_import(OMNI3D, source, tmp_path / "out", "turns=3")
    assert all("table" not in question and "table" not in answer for question, answer in sample.turns)
    assert summary.mark.notes == 0


def test_a_box_that_is_not_its_corners_is_named(tmp_path: Path) -> None:
    source = write(tmp_path, [annotation(0, 5), annotation(2, 9, dimensions=[0.7, 0.3, 0.4])])
    (sample,), summary = do_import(OMNI3D, source, tmp_path / "out")
    assert "table" not in json.dumps(sample.turns)
    assert left_out(summary) == {sample.key: "a table: bbox3D_cam is not the box of center_cam, dimensions and R_cam"}


def test_other_sizes_and_turned_pictures_are_left_out(tmp_path: Path) -> None:
    source = write(tmp_path, [annotation(0, 5)], width=120, height=160)
    _, summary = do_import(OMNI3D, source, tmp_path / "out")
    assert "160 x 120" in left_out(summary)["000000000011"]
    source = write(tmp_path, [annotation(0, 5)])
    draw(tmp_path / "datasets/SUNRGBD/kv1/img.jpg", SIZE, orientation=3)
    _, summary = do_import(OMNI3D, source, tmp_path / "out2")
    assert "EXIF" in left_out(summary)["000000000011"]


@pytest.mark.parametrize(
    ("entry", "image", "message"),
    [
        ({"R_cam": [[1, 0, 0], [0, 1, 0]]}, {}, "annotations[0].R_cam has 2 rows"),
        ({"center_cam": [1, 2]}, {}, "annotations[0].center_cam is [1, 2]; expected 3 numbers"),
        ({"valid3D": "yes"}, {}, "annotations[0].valid3D is 'yes'"),
        ({}, {"K": [1, 2, 3]}, "images[0].K[0] is 1; expected 3 numbers"),
        ({}, {"file_path": None}, "images[0].file_path is None"),
    ],
)
def test_another_format_is_one_line(tmp_path: Path, entry: dict[str, Any], image: dict[str, Any], message: str) -> None:
    source = write(tmp_path, [annotation(0, 5, **entry)], **image)
    with pytest.raises(UserError) as raised:
        do_import(OMNI3D, source, tmp_path / "out")
    (problem,) = raised.value.problems
    assert problem.startswith(str(source)) and message in problem


def test_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trains(OMNI3D, write(tmp_path, [annotation(0, 5), annotation(2, 9)]), tmp_path, capsys)
