"""COCO's files as COCO publishes them, small."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from public_sets import Edges, draw

CATEGORIES = [
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "animal", "id": 18, "name": "dog"},
    {"supercategory": "kitchen", "id": 47, "name": "cup"},
    {"supercategory": "vehicle", "id": 6, "name": "bus"},
]
INFO = {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org", "version": "1.0", "year": 2017}
LICENSES = [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}]


def image_entry(number: int, size: tuple[int, int], file_name: str | None = None) -> dict[str, Any]:
    return {"license": 4, "file_name": file_name or f"{number:012d}.jpg", "coco_url": "", "height": size[1],
            "width": size[0], "date_captured": "2013-11-14 11:18:45", "flickr_url": "", "id": number}  # fmt: skip


def box_entry(number: int, image: int, category: int, edges: Edges, **more: Any) -> dict[str, Any]:
    """With the rectangle as its polygon."""
    left, top, right, bottom = edges
    polygon = [left, top, right, top, right, bottom, left, bottom]
    return {"segmentation": [polygon], "area": (right - left) * (bottom - top), "iscrowd": 0, "image_id": image,
            "bbox": [left, top, right - left, bottom - top], "category_id": category, "id": number, **more}  # fmt: skip


def crowd_entry(number: int, image: int, category: int, edges: Edges, size: tuple[int, int]) -> dict[str, Any]:
    """Its region as COCO's runs, column by column."""
    left, top, right, bottom = map(int, edges)
    width, height = size
    counts = [left * height + top]
    for column in range(left, right):
        counts += [bottom - top, height - bottom + top] if column < right - 1 else [bottom - top]
    counts.append(width * height - sum(counts))
    runs = {"counts": counts, "size": [height, width]}
    return box_entry(number, image, category, edges, iscrowd=1, segmentation=runs)


def write(
    path: Path, images: Sequence[Any], annotations: Sequence[Any], categories: Sequence[Any] = CATEGORIES
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"info": INFO, "licenses": LICENSES, "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(body))
    return path


def boxes_of_two(folder: Path) -> Path:
    """Two good pictures, people, a dog and a cup."""
    sizes = {391895: (64, 48), 9: (80, 60)}
    blocks: dict[int, list[Edges]] = {
        391895: [(4, 4, 20, 40), (24, 6, 40, 44), (44, 20, 62, 46)],
        9: [(10, 10, 30, 30)],
    }
    for number, size in sizes.items():
        draw(folder / f"train2017/{number:012d}.jpg", size, blocks[number])
    annotations = [
        box_entry(1, 391895, 1, blocks[391895][0]),
        box_entry(2, 9, 47, blocks[9][0]),
        box_entry(3, 391895, 18, blocks[391895][2]),
        box_entry(4, 391895, 1, blocks[391895][1]),
    ]
    images = [image_entry(number, size) for number, size in sizes.items()]
    return write(folder / "annotations/instances_train2017.json", images, annotations)
