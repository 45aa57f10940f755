"""OpenImages (V4 to V7): the table of boxes (CSV), the table of classes, and a folder of ``ImageID.jpg``.

Columns: ImageID, Source, LabelName, Confidence, XMin, XMax, YMin, YMax (shares of the width and height), and flags, of
which 1 is yes, 0 no and -1 not known. ``IsGroupOf`` marks a box around more than five things. The boxes are about the
stored pixels: the published rotations are to be applied to images and boxes alike.

Classes form a tree: a man has a box as ``Man`` and none as ``Person``. Where a picture has boxes of a class and of one
below it, those of the upper class are not all of its things.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.frame import Entry, Format, Made, clean_key, option
from megatron_qwen3vl.importers.groups import group
from megatron_qwen3vl.importers.located import BoxSettings, Mark, ask, converse, look
from megatron_qwen3vl.importers.pictures import find_folder, read_photo

NAME = "OpenImages"
FLAGS = {"occluded": "IsOccluded", "truncated": "IsTruncated", "depiction": "IsDepiction", "inside": "IsInside"}
EDGES = ("XMin", "YMin", "XMax", "YMax")
COLUMNS = ("ImageID", "LabelName", *EDGES, "IsGroupOf")
CLASSES = ("class-descriptions-boxable.csv", "oidv7-class-descriptions-boxable.csv", "class-descriptions.csv",
           "oidv7-class-descriptions.csv")  # fmt: skip
HIERARCHY = "bbox_labels_600_hierarchy.json"
WITHOUT = "no"


@dataclass(frozen=True)
class OpenImagesSettings(BoxSettings):
    classes: str | None = option(None, "table of the classes' names; null looks beside SOURCE")
    hierarchy: str | None = option(None, f"{HIERARCHY}; null looks beside SOURCE, `{WITHOUT}` goes without")
    leave_out: tuple[str, ...] = option((), f"flags of boxes that are not asked about, out of {','.join(FLAGS)}")
    lower: bool = option(True, "labels in lower case (the source writes `Human face`)")

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = [f"leave_out: {flag} is unknown; there are {', '.join(FLAGS)}"
                    for flag in self.leave_out if flag not in FLAGS]  # fmt: skip
        if self.negatives:
            problems.append("negatives: a class without a box may still be in the picture here; leave it false")
        if problems:
            raise UserError(problems)


def read(source: Path, settings: OpenImagesSettings) -> Iterator[Entry]:
    names = _classes(_find(source, settings.classes, CLASSES, "the table of the classes' names", "classes=FILE"),
                     settings.lower)  # fmt: skip
    below: dict[str, frozenset[str]] = {}
    if settings.hierarchy != WITHOUT:
        how = f"hierarchy=FILE, or go without by hierarchy={WITHOUT}"
        below = _below(_find(source, settings.hierarchy, (HIERARCHY,), "the tree of the classes", how))
    subset = source.name.split("-")[-3] if source.name.count("-") >= 2 else source.stem  # train, validation or test
    parents = (source.parent, source.parent.parent)
    guesses = [parent / tail for parent in parents for tail in (subset, f"images/{subset}", "images", f"data/{subset}")]
    folder = find_folder(settings.images, guesses, source)
    with group(_rows(source, names)) as boxes:
        total, done = len(boxes), 0
        for image_id in boxes.names():
            rows = boxes.of(image_id)
            done += len(rows)
            make = partial(_make, folder, image_id, rows, names, below, settings)
            yield Entry(clean_key(image_id), make, part=done / total)


def _find(source: Path, given: str | None, names: Sequence[str], what: str, how: str) -> Path:
    """The file that the user gave, or the first of ``names`` beside SOURCE or its folder."""
    folders = (source.parent, source.parent.parent)
    files = [Path(given)] if given is not None else [folder / name for folder in folders for name in names]
    for path in files:
        if path.is_file():
            return path
    raise UserError(f"{files[0]}: {what} is not there; give it as {how}")


def _below(path: Path) -> dict[str, frozenset[str]]:
    """Class -> all classes below it in the tree (kinds of it, not parts)."""
    found: dict[str, frozenset[str]] = {}

    def descend(node: Any) -> frozenset[str]:
        if not isinstance(node, dict) or not isinstance(node.get("LabelName"), str):
            raise UserError(f"{path}: a node without LabelName; expected {{LabelName, Subcategory: [...]}}")
        children = node.get("Subcategory", [])
        under = frozenset(name for child in children for name in descend(child) | {child["LabelName"]})
        found[node["LabelName"]] = found.get(node["LabelName"], frozenset()) | under
        return under

    try:
        descend(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as the tree of the classes: {error}") from error
    return found


def _classes(path: Path, lower: bool) -> dict[str, str]:
    """LabelName -> its name in words. V7's table has a line of headings, older ones have none."""
    names: dict[str, str] = {}
    for number, row in enumerate(_lines(path)):
        if len(row) != 2:
            raise UserError(f"{path}, line {number + 1}: {len(row)} columns; expected a LabelName and its words")
        if row != ["LabelName", "DisplayName"]:
            names[row[0]] = row[1].strip().lower() if lower else row[1].strip()
    return names


def _lines(path: Path) -> Iterator[list[str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.reader(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table: {error}") from error


def _rows(path: Path, names: Mapping[str, str]) -> Iterator[tuple[str, list[Any]]]:
    """ImageID and [LabelName, left, top, right, bottom, group, flags that are set]."""
    lines = _lines(path)
    head = next(lines, [])
    missing = [column for column in COLUMNS if column not in head]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; {NAME}' table of boxes has {', '.join(COLUMNS)}, ...")
    place = {column: head.index(column) for column in head}
    flags = [(flag, place[column]) for flag, column in FLAGS.items() if column in place]
    count = 0
    for number, row in enumerate(lines, 2):
        if len(row) != len(head):
            raise UserError(f"{path}, line {number}: {len(row)} columns; the first line has {len(head)}")
        label = row[place["LabelName"]]
        if label not in names:
            raise UserError(f"{path}, line {number}: LabelName {label!r:.40} is not in the table of classes")
        try:
            edges = [float(row[place[edge]]) for edge in EDGES]
        except ValueError:
            raise UserError(f"{path}, line {number}: {', '.join(EDGES)} are not all numbers") from None
        held = [flag for flag, column in flags if row[column] == "1"]
        count += 1
        yield row[place["ImageID"]], [label, *edges, row[place["IsGroupOf"]] == "1", held]
    if not count:
        raise UserError(f"{path}: no boxes in this table")


def _make(
    folder: Path,
    image_id: str,
    rows: Sequence[Sequence[Any]],
    names: Mapping[str, str],
    below: Mapping[str, frozenset[str]],
    settings: OpenImagesSettings,
) -> Made:
    photo = read_photo(folder, f"{image_id}.jpg", f"{image_id[:1]}/{image_id}.jpg", f"{image_id}.png")
    frame = photo.frame(None, settings.coordinates)
    width, height = frame.size
    marks = []
    for label, left, top, right, bottom, many, held in rows:
        edges = (left * width, top * height, right * width, bottom * height)
        marks.append(Mark(names[label], edges, many, any(flag in settings.leave_out for flag in held)))
    present = {label for label, *_ in rows}
    upper = {names[label] for label in present if below.get(label, frozenset()) & present}
    seen = look(marks, frame, settings, (), upper)
    return converse(photo, ask(image_id, seen, settings), "grounding")


OPENIMAGES = Format(
    "openimages",
    "boxes of OpenImages, V4 to V7",
    "its table of boxes: train-annotations-bbox.csv, oidv6-train-annotations-bbox.csv or the like",
    OpenImagesSettings,
    read,
)
