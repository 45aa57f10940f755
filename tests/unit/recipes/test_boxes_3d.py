"""3D boxes are right: their corners, projected by another's formulas, enclose exactly the object's pixels."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from built import built
from scipy.spatial import ConvexHull
from seen import HUES, hues, pixels

from megatron_qwen3vl.recipes.reader import ReadSample

CAMERA = re.compile(r"sees ([\d.]+) degrees across, stands ([\d.]+) m above the floor and looks (\d+) degrees down")


def turned(point: list[float], roll: float, pitch: float, yaw: float) -> list[float]:
    """About x, then y, then z, one coordinate at a time."""
    x, y, z = point
    y, z = y * math.cos(pitch) - z * math.sin(pitch), y * math.sin(pitch) + z * math.cos(pitch)
    x, z = x * math.cos(yaw) + z * math.sin(yaw), -x * math.sin(yaw) + z * math.cos(yaw)
    return [x * math.cos(roll) - y * math.sin(roll), x * math.sin(roll) + y * math.cos(roll), z]


def corners(box: list[float]) -> np.ndarray:
    """[8, 3] in camera coordinates."""
    x, y, z, dx, dy, dz = box[:6]
    roll, pitch, yaw = (math.pi * a for a in box[6:])
    found = [turned([i * dx / 2, j * dy / 2, k * dz / 2], roll, pitch, yaw) for i in (-1, 1) for j in (-1, 1)
             for k in (-1, 1)]  # fmt: skip
    return np.array(found) + [x, y, z]


def silhouette(points: np.ndarray, width: int, height: int, field_of_view: float) -> np.ndarray:
    """bool [height, width]: pixel centres inside the hull of the projected corners."""
    focal = width / 2 / math.tan(math.radians(field_of_view / 2))
    seen = points[:, :2] / points[:, 2:] * focal + [width / 2, height / 2]
    grid = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)
    inside = np.ones((height, width), bool)
    for across, down, offset in ConvexHull(seen).equations:
        inside &= grid @ [across, down] + offset <= 0
    return inside


def wrong(sample: ReadSample, answer: str) -> list[str]:
    """What is wrong with an answer about the sample's picture."""
    ((question, _),) = sample.turns
    picture = pixels(sample.images[0])
    height, width = picture.shape[:2]
    view, above, down = (float(n) for n in CAMERA.search(question).groups())  # type: ignore[union-attr]
    hue, vivid = hues(picture)
    problems = []
    entries = json.loads(answer)
    areas = {e["label"]: silhouette(corners(e["bbox_3d"]), width, height, view) for e in entries}
    for entry in entries:
        points = corners(entry["bbox_3d"])
        colour = entry["label"].removesuffix(" box")
        mine = vivid & (np.abs((hue - HUES[colour] + 180) % 360 - 180) < 11)
        area = areas[entry["label"]]
        # pixels of other boxes may hide this one; where no box is seen inside the silhouette, it is false
        unseen = area & ~vivid
        outside = mine & ~area
        rim = 2 * np.count_nonzero(area ^ np.roll(area, 1, 0)) + 2 * np.count_nonzero(area ^ np.roll(area, 1, 1))
        if not mine.any() or max(outside.sum(), unseen.sum()) > 6 + 0.09 * rim:
            problems.append(f"{entry}: {outside.sum()} pixels outside, {unseen.sum()} missing of {area.sum()}")
        if mine.sum() < 0.6 * area.sum():
            problems.append(f"{entry}: hidden")
        # the lowest corner touches the floor: what the projection alone cannot tell, size against distance
        level = points @ [0, math.cos(math.radians(down)), math.sin(math.radians(down))]
        if abs(level.max() - above) > 0.05:
            problems.append(f"{entry}: {above - level.max():.2f} m above the floor")
    if "Find all" in question:
        others = [n for n in HUES if (vivid & (np.abs((hue - HUES[n] + 180) % 360 - 180) < 8)).sum() > 60]
        if len(others) != len(entries):
            problems.append(f"{len(entries)} boxes, but {others} are seen")
    return problems


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[ReadSample]:
    return built("boxes_3d", tmp_path_factory.mktemp("boxes_3d"))


def test_boxes_enclose_their_pixels_and_stand_on_the_floor(samples: list[ReadSample]) -> None:
    assert len(samples) == 200
    assert not [problem for sample in samples for problem in wrong(sample, sample.turns[0][1])]
    boxes = np.array([e["bbox_3d"] for s in samples for e in json.loads(s.turns[0][1])])
    assert (boxes.std(0) > 0.03).all(), "all nine numbers vary"


def test_false_boxes_are_found(samples: list[ReadSample]) -> None:
    """Each of the nine numbers changed by enough to be seen."""
    change = (0.3, 0.2, 0.8, 0.5, 0.4, 0.5, 0.12, 0.12, 0.12)
    missed = total = 0
    for sample in samples[:30]:
        entries = json.loads(sample.turns[0][1])
        for index, by in enumerate(change):
            numbers = [n + by * (i == index) for i, n in enumerate(entries[0]["bbox_3d"])]
            total += 1
            missed += not wrong(sample, json.dumps([entries[0] | {"bbox_3d": numbers}, *entries[1:]]))
    assert missed <= 0.03 * total, f"{missed} of {total}"
