"""COCO: ``instances_*.json``, ``captions_*.json`` and ``person_keypoints_*.json`` with their folder of images.

Boxes are ``[left, top, width, height]`` in pixels of the file as it is stored (pycocotools gives them as they are, and
torchvision's dataset opens images without applying EXIF). ``iscrowd`` marks a region with many things of a category.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.choosing import Chooser
from megatron_qwen3vl.importers.coco_json import Listed, Table, open_table
from megatron_qwen3vl.importers.fields import elements, member, numbers
from megatron_qwen3vl.importers.files import sample
from megatron_qwen3vl.importers.frame import Entry, Format, Made, Unwanted, clean_key, option
from megatron_qwen3vl.importers.keypoints import Person, ask_keypoints
from megatron_qwen3vl.importers.located import NOTHING, BoxSettings, Mark, ask, converse, look, one_of
from megatron_qwen3vl.importers.pictures import Frame, Photo, find_folder, read_photo
from megatron_qwen3vl.recipes.record import conversation, document, image, text

NAME = "COCO"
KINDS = ("auto", "boxes", "captions", "keypoints")
FORMS = ("document", "conversation")
DESCRIBE = (
    "Describe this picture in one sentence.",
    "What does the picture show?",
    "Write a caption for this image.",
    "Give a short description of the image.",
)


@dataclass(frozen=True)
class CocoSettings(BoxSettings):
    kind: str = option("auto", "what is made: boxes, captions or keypoints; `auto` takes what the annotations hold")
    captions: int = option(1, "captions used of each picture, each its own sample; 0 uses all")
    form: str = option("document", "captions as `document` (image, text) or as `conversation`")
    hidden: bool = option(False, "keypoints: also those that are marked but cannot be seen")

    def __post_init__(self) -> None:
        problems = one_of("kind", self.kind, KINDS) + one_of("form", self.form, FORMS)
        if self.captions < 0:
            problems.append(f"captions: {self.captions} must be at least 0")
        try:
            super().__post_init__()
        except UserError as error:
            problems += error.problems
        if problems:
            raise UserError(problems)


def read(source: Path, settings: CocoSettings) -> Iterator[Entry]:
    kind = settings.kind
    if kind == "auto" and source.is_file():
        first = next(elements(source, "annotations", NAME))
        kind = "captions" if "caption" in first else "keypoints" if "keypoints" in first else "boxes"
    split = source.stem.rpartition("_")[2]
    folder_of = source.parent.parent
    with open_table(source, NAME, KEEP[kind], with_categories=kind != "captions") as table:
        folder = find_folder(settings.images, [folder_of / split, folder_of / "images" / split], source)
        if kind == "captions":
            yield from _captions(table, folder, settings)
            return
        make = partial(_keypoints, _joints(table)) if kind == "keypoints" else _boxes
        for listed in table.images():
            yield Entry(key_of(listed), partial(make, table, folder, listed, settings), part=listed.part)


def key_of(listed: Listed) -> str:
    return f"{listed.id:012d}" if isinstance(listed.id, int) else clean_key(listed.id)


def keep_box(entry: Mapping[str, Any], where: str) -> list[Any]:
    """Category, left, top, width, height, crowd."""
    crowd = member(entry, "iscrowd", int, where) if "iscrowd" in entry else 0
    return [entry["category_id"], *numbers(entry, "bbox", 4, where), crowd]


def _keep_keypoints(entry: Mapping[str, Any], where: str) -> list[Any]:
    """As ``keep_box``, then x, y, visibility of each joint."""
    joints = numbers(entry, "keypoints", None, where)
    if len(joints) % 3:
        raise UserError(f"{where}.keypoints has {len(joints)} numbers; expected three for each joint")
    return keep_box(entry, where) + joints


def _keep_caption(entry: Mapping[str, Any], where: str) -> str:
    return str(member(entry, "caption", str, where))


KEEP: dict[str, Callable[[Mapping[str, Any], str], Any]] = {
    "auto": keep_box,
    "boxes": keep_box,
    "captions": _keep_caption,
    "keypoints": _keep_keypoints,
}


def frame_of(photo: Photo, listed: Listed, settings: BoxSettings) -> Frame:
    """Raises BadSample where the image is not of the size that the list states."""
    return photo.frame((listed.entry["width"], listed.entry["height"]), settings.coordinates)


def _edges(row: Sequence[float]) -> tuple[float, float, float, float]:
    """Of [left, top, width, height]."""
    left, top, width, height = row
    return left, top, left + width, top + height


def _boxes(table: Table, folder: Path, listed: Listed, settings: CocoSettings) -> Made:
    marks = [Mark(table.name_of(row[0]), _edges(row[1:5]), crowd=row[5] != 0) for row in listed.rows]
    if not marks and not settings.negatives:
        raise Unwanted("negatives")
    photo = read_photo(folder, listed.entry["file_name"])
    absent = [str(category["name"]) for category in table.categories.values()]
    seen = look(marks, frame_of(photo, listed, settings), settings, absent)
    return converse(photo, ask(key_of(listed), seen, settings), "grounding")


def _joints(table: Table) -> dict[int, list[str]]:
    """Of each category, the joints' names."""
    found = {}
    for number, category in table.categories.items():
        names = category.get("keypoints")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            found[number] = [name.replace("_", " ") for name in names]
    if not found:
        raise UserError(f"{table.path}: categories[0].keypoints is missing; {NAME} lists the joints' names there")
    return found


def _keypoints(
    joints: Mapping[int, Sequence[str]], table: Table, folder: Path, listed: Listed, settings: CocoSettings
) -> Made:
    photo = read_photo(folder, listed.entry["file_name"])
    frame = frame_of(photo, listed, settings)
    people = []
    for row in listed.rows:
        box = frame.box(*_edges(row[1:5]), settings.min_side)
        if box is None or row[5] or len(row) - 6 != 3 * len(joints.get(row[0], ())):
            continue
        seen = {}
        for name, x, y, visibility in zip(joints[row[0]], row[6::3], row[7::3], row[8::3], strict=True):
            point = frame.point(x, y) if visibility == 2 or (visibility == 1 and settings.hidden) else None
            if point is not None:
                seen[name] = point
        if seen:
            people.append(Person(table.name_of(row[0]), box, seen))
    return converse(photo, ask_keypoints(key_of(listed), people, settings.turns, settings.hidden), "grounding")


def _captions(table: Table, folder: Path, settings: CocoSettings) -> Iterator[Entry]:
    for listed in table.images():
        key = key_of(listed)
        captions = [" ".join(caption.split()) for caption in listed.rows]
        chosen = Chooser(key).some(captions, settings.captions) if settings.captions else captions
        for number, caption in enumerate(chosen or [""]):
            make = partial(_caption, folder, listed, caption, f"{key} {number}", settings.form)
            yield Entry(f"{key}_{number}", make, group=key, part=listed.part)


def _caption(folder: Path, listed: Listed, caption: str, key: str, form: str) -> Made:
    if not caption:
        raise Unwanted(NOTHING)
    photo = read_photo(folder, listed.entry["file_name"])
    if form == "document":
        return sample(document([image(photo.name), text(caption)], "caption"), {photo.name: photo.data})
    question = [image(photo.name), text(Chooser(key).pick(DESCRIBE))]
    return sample(conversation([(question, caption)], "caption"), {photo.name: photo.data})


COCO = Format(
    "coco",
    "boxes, captions or person keypoints of COCO and of what is laid out like it",
    "its JSON: annotations/instances_*.json, captions_*.json or person_keypoints_*.json",
    CocoSettings,
    read,
)
