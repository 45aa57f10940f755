"""Omni3D: COCO's layout with a camera for each image and a cuboid for each annotation -> 3D boxes as JSON.

Coordinates are the camera's: x to the right, y down, z forward, in metres. ``dimensions`` is [width, height, length],
which lie along the cuboid's own z, y and x; ``R_cam`` turns it, ``center_cam`` is its centre. The answer's nine numbers
are those of ``recipes/boxes_3d``.

**The virtual camera.** One picture allows many depths: a camera of twice the focal length shows the same from twice as
far. As Omni3D's own model does, everything is moved to one camera (``field_of_view`` across the width, its axis through
the centre of the picture): depth is multiplied by the ratio of focal lengths, and the centre is put where it is seen.
Sizes and turns stay, so a box keeps its size in the picture; ``camera=true`` leaves the numbers and says the camera.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.choosing import Chooser
from megatron_qwen3vl.importers.coco import key_of
from megatron_qwen3vl.importers.coco_json import Listed, Table, open_table
from megatron_qwen3vl.importers.fields import NUMBER, matrix, member, numbers
from megatron_qwen3vl.importers.frame import Entry, Format, Made, option
from megatron_qwen3vl.importers.located import converse, one_of
from megatron_qwen3vl.importers.pictures import find_folder, read_photo
from megatron_qwen3vl.recipes.boxes_3d import CORNERS, DOMAIN, FORMAT, angles

NAME = "Omni3D"
CAMERAS = ("virtual", "true")
OPTIONAL = {"visibility": -1.0, "truncation": -1.0, "depth_error": -1.0, "lidar_pts": -1, "segmentation_pts": -1}
TOLERANCE = 0.05  # of the longest side: how far a corner may lie from where bbox3D_cam says
FIND_ALL = (
    "Find every {} in this picture. For each, give its 3D bounding box as JSON: ",
    "Detect all instances of {} and output their 3D bounding boxes as JSON: ",
    "Where is each {} in space? Answer with 3D boxes as JSON: ",
)
FIND = (
    "Locate the {} in this picture and output its 3D bounding box as JSON: ",
    "Give the 3D bounding box of the {} as JSON: ",
)
FIND_EVERY = ("Find these in the picture: {}. For each, give its 3D bounding box as JSON: ",)


@dataclass(frozen=True)
class Omni3DSettings:
    images: str | None = option(None, "folder that the list's paths begin in (`datasets`); null looks around SOURCE")
    camera: str = option("virtual", "numbers in one `virtual` camera for all pictures, or in each picture's `true` one")
    field_of_view: float = option(60.0, "degrees across the width, of the virtual camera")
    turns: int = option(2, "most questions about one picture")
    max_objects: int = option(20, "most boxes of one answer")
    max_depth: float = option(100.0, "metres, as annotated; farther boxes are not asked about")
    max_truncation: float = option(0.33, "boxes that stick out of the picture by a larger share are not asked about")
    min_visibility: float = option(0.33, "boxes of which others leave less to be seen are not asked about")
    max_depth_error: float = option(0.5, "metres between the box and a depth map")

    def __post_init__(self) -> None:
        problems = one_of("camera", self.camera, CAMERAS)
        if not 1 <= self.field_of_view <= 170:
            problems.append(f"field_of_view: {self.field_of_view} must be from 1 to 170")
        for name, value in (("turns", self.turns), ("max_objects", self.max_objects)):
            if value < 1:
                problems.append(f"{name}: {value} must be at least 1")
        if problems:
            raise UserError(problems)


@dataclass(frozen=True)
class Cuboid:
    """``sizes``: along its own x, y and z. ``rotation`` [3, 3] turns these into the camera's."""

    centre: tuple[float, ...]
    sizes: tuple[float, ...]
    rotation: np.ndarray

    def corners(self) -> np.ndarray:
        """[8, 3]"""
        return CORNERS * self.sizes @ self.rotation.T + self.centre


def _keep(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    valid = member(entry, "valid3D", (bool, int), where) and not entry.get("behind_camera", False)
    if not valid:
        return {"category_id": entry["category_id"], "valid": False}
    kept = {
        "category_id": entry["category_id"],
        "valid": True,
        "center_cam": numbers(entry, "center_cam", 3, where),
        "dimensions": numbers(entry, "dimensions", 3, where),
        "R_cam": matrix(entry, "R_cam", 3, 3, where),
        "bbox3D_cam": matrix(entry, "bbox3D_cam", 8, 3, where),
    }
    return kept | {name: member(entry, name, NUMBER, where) if name in entry else v for name, v in OPTIONAL.items()}


def read(source: Path, settings: Omni3DSettings) -> Iterator[Entry]:
    fields = {"file_path": str, "width": int, "height": int, "K": list}
    with open_table(source, NAME, _keep, image_fields=fields) as table:
        parents = list(source.absolute().parents)[:3]
        guesses = [parent for parent in parents if parent.name == "datasets"]
        guesses += [parent / "datasets" for parent in parents]
        folder = find_folder(settings.images, guesses, source)
        for number, listed in enumerate(table.images()):
            numbers_of_camera = matrix(listed.entry, "K", 3, 3, f"{source}: images[{number}]")
            make = partial(_make, table, folder, listed, np.array(numbers_of_camera), settings)
            yield Entry(key_of(listed), make, part=listed.part)


def _make(table: Table, folder: Path, listed: Listed, camera: np.ndarray, settings: Omni3DSettings) -> Made:
    photo = read_photo(folder, listed.entry["file_path"])
    size = (listed.entry["width"], listed.entry["height"])
    photo.frame(size, "stored")
    if photo.orientation != 1:
        raise BadSample("its EXIF turns the picture; a 3D box is about the pixels as they are stored")
    if not (camera[0, 0] > 0 and camera[1, 1] > 0):
        raise BadSample("K has no focal length")
    found: list[dict[str, Any]] = []
    torn, notes = set(), []
    for row in listed.rows:
        label = table.name_of(row["category_id"])
        if not _usable(row, settings):
            torn.add(label)
            continue
        cuboid = _cuboid(row)
        if not _agrees(cuboid, np.array(row["bbox3D_cam"])):
            torn.add(label)
            notes.append(f"a {label}: bbox3D_cam is not the box of center_cam, dimensions and R_cam")
            continue
        if settings.camera == "virtual":
            cuboid = to_virtual(cuboid, camera, size, settings.field_of_view)
        found.append({"bbox_3d": nine(cuboid), "label": label})
    found = [entry for entry in found if entry["label"] not in torn]
    across = settings.field_of_view
    if settings.camera == "true":
        across = math.degrees(2 * math.atan(size[0] / 2 / camera[0, 0]))
    about = f"The camera sees {round(across, 1):g} degrees across. "
    if settings.camera == "true":
        x, y = camera[0, 2] * 1000 / size[0], camera[1, 2] * 1000 / size[1]
        about += f"Its axis goes through the point [{round(x)}, {round(y)}]. "
    made = converse(photo, _ask(key_of(listed), about, found, settings), DOMAIN)
    return Made(made.files, tuple(notes))


def _cuboid(row: Mapping[str, Any]) -> Cuboid:
    width, height, length = row["dimensions"]
    return Cuboid(tuple(row["center_cam"]), (length, height, width), np.array(row["R_cam"], float))


def _usable(row: Mapping[str, Any], settings: Omni3DSettings) -> bool:
    """As Omni3D's own training chooses; -1 says that a figure is not known."""
    return (
        row["valid"]
        and min(row["dimensions"]) > 0
        and 0 < row["center_cam"][2] <= settings.max_depth
        and row["lidar_pts"] != 0
        and row["segmentation_pts"] != 0
        and row["depth_error"] <= settings.max_depth_error
        and row["truncation"] <= settings.max_truncation
        and (row["visibility"] < 0 or row["visibility"] >= settings.min_visibility)
    )


def _agrees(cuboid: Cuboid, corners: np.ndarray) -> bool:
    """Whether the annotation's corners [8, 3] are the cuboid's, in any order."""
    apart = np.linalg.norm(cuboid.corners()[:, None] - corners[None], axis=-1)
    return bool(max(apart.min(0).max(), apart.min(1).max()) <= TOLERANCE * max(cuboid.sizes))


def to_virtual(cuboid: Cuboid, camera: np.ndarray, size: tuple[int, int], field_of_view: float) -> Cuboid:
    """What the virtual camera sees at the same place of the picture, and as large. ``camera``: K of the true one."""
    width, height = size
    focal = width / 2 / math.tan(math.radians(field_of_view) / 2)
    x, y, z = cuboid.centre
    seen_x, seen_y = camera[0, 0] * x / z + camera[0, 2], camera[1, 1] * y / z + camera[1, 2]
    depth = z * focal / float(camera[0, 0])
    centre = ((seen_x - width / 2) * depth / focal, (seen_y - height / 2) * depth / focal, depth)
    return Cuboid(tuple(float(number) for number in centre), cuboid.sizes, cuboid.rotation)


def nine(cuboid: Cuboid) -> list[float]:
    """Centimetres, and thousandths of 180 degrees, as ``recipes/boxes_3d`` rounds."""
    lengths = [round(float(number), 2) for number in (*cuboid.centre, *cuboid.sizes)]
    return lengths + [round(angle, 3) for angle in angles(cuboid.rotation)]


def _ask(
    key: str, about: str, found: Sequence[dict[str, Any]], settings: Omni3DSettings
) -> list[tuple[str, str]]:
    choose = Chooser(key)
    by_label: dict[str, list[dict[str, Any]]] = {}
    for entry in found:
        by_label.setdefault(entry["label"], []).append(entry)
    fitting = [label for label, entries in by_label.items() if len(entries) <= settings.max_objects]
    asked: dict[str, str] = {}
    if len(fitting) > 1 and len(found) <= settings.max_objects and choose.number(2):
        question = choose.pick(FIND_EVERY).format(", ".join(choose.some(fitting, len(fitting))))
        asked[about + question + FORMAT] = json.dumps(list(found), ensure_ascii=False)
    for label in choose.some(fitting, settings.turns - len(asked)):
        ways = FIND if len(by_label[label]) == 1 else FIND_ALL
        question = choose.pick(ways).format(label) + FORMAT
        asked[question if asked else about + question] = json.dumps(by_label[label], ensure_ascii=False)
    return list(asked.items())


OMNI3D = Format(
    "omni3d",
    "3D boxes with nine degrees of freedom of Omni3D",
    "its JSON: datasets/Omni3D/KITTI_train.json, SUNRGBD_train.json or the like",
    Omni3DSettings,
    read,
)
