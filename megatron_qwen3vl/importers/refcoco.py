"""RefCOCO, RefCOCO+ and RefCOCOg: a folder with ``refs(SPLIT_BY).p`` and ``instances.json``, and COCO's train2014.

``refs(unc).p`` is a pickle: it is read without unpickling (``plain_pickle``) and refused where it holds more than plain
data. ``refs(unc).json``, the same list as JSON, is taken where it is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.choosing import Chooser
from megatron_qwen3vl.importers.coco_json import SIZED, read_categories
from megatron_qwen3vl.importers.fields import elements, member, numbers
from megatron_qwen3vl.importers.frame import Entry, Format, Made, option
from megatron_qwen3vl.importers.located import converse, one_of
from megatron_qwen3vl.importers.pictures import FRAMES, find_folder, read_photo
from megatron_qwen3vl.importers.plain_pickle import load_plain

NAME = "RefCOCO"
SPLIT_BY = ("unc", "umd", "google")
FIND = (
    'Locate "{}", output its bbox in JSON.',
    "Where is this: {}? Give its bounding box as JSON.",
    "Report the bbox coordinates of what is meant by: {}. Answer in JSON format.",
    'Which region does "{}" describe? Output the bbox in JSON.',
)
DESCRIBE = (
    "Which words single out the {} in the box {}?",
    "Describe the {} inside {} so that it cannot be mistaken for another.",
    "Give a referring expression for the {} in the region {}.",
)


@dataclass(frozen=True)
class RefCocoSettings:
    images: str | None = option(None, "folder of COCO's train2014; null looks beside SOURCE")
    split_by: str | None = option(None, "whose split: unc, umd or google; null takes the only one that is there")
    split: tuple[str, ...] = option(("train",), "splits that are read; the others are for evaluation")
    turns: int = option(8, "most questions of a sample; a picture with more expressions gives several samples")
    describe: float = option(0.25, "share of the expressions that are asked for, from the box, instead of given")
    coordinates: str = option("stored", "where EXIF turns a picture but keeps its size: `stored` pixels or `displayed`")

    def __post_init__(self) -> None:
        problems = one_of("coordinates", self.coordinates, FRAMES)
        if self.split_by is not None:
            problems += one_of("split_by", self.split_by, SPLIT_BY)
        if self.turns < 1:
            problems.append(f"turns: {self.turns} must be at least 1")
        if not 0 <= self.describe <= 1:
            problems.append(f"describe: {self.describe} must be from 0 to 1")
        if problems:
            raise UserError(problems)


@dataclass(frozen=True)
class Meant:
    """An expression and what it means; ``box``: left, top, width, height in pixels."""

    expression: str
    ann_id: int
    category: str
    box: tuple[float, ...]


def read(source: Path, settings: RefCocoSettings) -> Iterator[Entry]:
    """What it holds: the expressions and boxes of one data set, some hundreds of thousands; no images."""
    path, refs = _refs(source, settings.split_by)
    instances = source / "instances.json"
    around = (source, source.parent, source.parent / "images")
    tails = ("train2014", "images/train2014", "mscoco/images/train2014")
    folder = find_folder(settings.images, [place / tail for place in around for tail in tails], source)
    wanted = _by_image(path, refs, settings.split)
    if not wanted:
        there = ", ".join(sorted({str(ref.get("split")) for ref in refs}))
        raise UserError(f"{path}: none of the splits {','.join(settings.split)}; there are {there}: give split=NAME")
    boxes = _boxes(instances, {ref["ann_id"] for rows in wanted.values() for ref in rows})
    images = _images(instances, wanted)
    for number, (image_id, rows) in enumerate(wanted.items(), 1):
        meant = _unambiguous(_meant(path, rows, boxes))
        for chunk in range(-(-len(meant) // settings.turns)):
            key = f"{image_id:012d}_{chunk}"
            some = meant[chunk * settings.turns : (chunk + 1) * settings.turns]
            make = partial(_make, folder, images.get(image_id), image_id, some, key, settings)
            yield Entry(key, make, group=f"{image_id:012d}", part=number / len(wanted))


def _refs(source: Path, split_by: str | None) -> tuple[Path, list[dict[str, Any]]]:
    names = [f"refs({by}){ending}" for by in ((split_by,) if split_by else SPLIT_BY) for ending in (".json", ".p")]
    found = [source / name for name in names if (source / name).is_file()]
    if not found:
        raise UserError(f"{source}: no {' or '.join(names)}; name the folder of refcoco, refcoco+ or refcocog")
    if len({path.stem for path in found}) > 1:
        there = " and ".join(path.name for path in found)
        raise UserError(f"{source}: holds {there}; choose by split_by=unc, umd or google")
    path = found[0]
    if path.suffix == ".p":
        refs = load_plain(path)
    else:
        try:
            refs = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(refs, list) or not refs or not all(isinstance(ref, dict) for ref in refs):
        raise UserError(f"{path}: not a list of references, as {NAME} has it")
    return path, refs


def _by_image(path: Path, refs: Sequence[dict[str, Any]], splits: Sequence[str]) -> dict[int, list[dict[str, Any]]]:
    """The references of the wanted splits, in the order of their images' first."""
    found: dict[int, list[dict[str, Any]]] = {}
    for number, ref in enumerate(refs):
        where = f"{path}: [{number}]"
        member(ref, "ann_id", int, where)
        if member(ref, "split", str, where) in splits:
            found.setdefault(member(ref, "image_id", int, where), []).append(ref)
    return found


def _boxes(path: Path, wanted: set[int]) -> dict[int, tuple[str, tuple[float, ...]]]:
    """Of each wanted annotation, its category's name and its box."""
    names = {number: str(category["name"]) for number, category in read_categories(path, NAME).items()}
    found = {}
    for number, entry in enumerate(elements(path, "annotations", NAME)):
        where = f"{path}: annotations[{number}]"
        if member(entry, "id", int, where) in wanted:
            category = member(entry, "category_id", int, where)
            if category not in names:
                raise UserError(f"{where}.category_id is {category}, which `categories` does not have")
            found[entry["id"]] = names[category], tuple(numbers(entry, "bbox", 4, where))
    return found


def _images(path: Path, wanted: Mapping[int, Any]) -> dict[int, dict[str, Any]]:
    found = {}
    for number, entry in enumerate(elements(path, "images", NAME)):
        where = f"{path}: images[{number}]"
        if member(entry, "id", int, where) in wanted:
            found[entry["id"]] = {name: member(entry, name, kinds, where) for name, kinds in SIZED.items()}
    return found


def _meant(
    path: Path, refs: Sequence[dict[str, Any]], boxes: Mapping[int, tuple[str, tuple[float, ...]]]
) -> Iterator[Meant]:
    for ref in refs:
        where = f"{path}: the reference of ann_id {ref['ann_id']}"
        if ref["ann_id"] not in boxes:
            raise UserError(f"{where} is not in instances.json; the two files are of different data sets")
        category, box = boxes[ref["ann_id"]]
        for sentence in member(ref, "sentences", list, where):
            if not isinstance(sentence, dict):
                raise UserError(f"{where}.sentences holds what is no object; expected {{sent, raw, tokens, sent_id}}")
            words = " ".join(member(sentence, "sent", str, where).split())
            if words:
                yield Meant(words, ref["ann_id"], category, box)


def _unambiguous(found: Iterator[Meant]) -> list[Meant]:
    """Each expression once, and only those that mean one thing of their picture."""
    things: dict[str, set[int]] = {}
    first: dict[str, Meant] = {}
    for meant in found:
        things.setdefault(meant.expression.lower(), set()).add(meant.ann_id)
        first.setdefault(meant.expression.lower(), meant)
    return [meant for expression, meant in first.items() if len(things[expression]) == 1]


def _make(
    folder: Path,
    entry: Mapping[str, Any] | None,
    image_id: int,
    some: Sequence[Meant],
    key: str,
    settings: RefCocoSettings,
) -> Made:
    if entry is None:
        raise BadSample(f"image {image_id} is not in instances.json")
    photo = read_photo(folder, entry["file_name"])
    frame = photo.frame((entry["width"], entry["height"]), settings.coordinates)
    choose = Chooser(key)
    asked: dict[str, str] = {}
    for meant in some:
        left, top, width, height = meant.box
        box = frame.box(left, top, left + width, top + height, 0.0)
        if box is None:
            continue
        question = choose.pick(DESCRIBE).format(meant.category, list(box))
        if choose.number(1000) < 1000 * settings.describe and question not in asked:
            asked[question] = meant.expression
        else:
            answer = json.dumps({"bbox_2d": list(box), "label": meant.category}, ensure_ascii=False)
            asked.setdefault(choose.pick(FIND).format(meant.expression), answer)
    return converse(photo, list(asked.items()), "grounding")


REFCOCO = Format(
    "refcoco",
    "referring expressions of RefCOCO, RefCOCO+ and RefCOCOg",
    "its folder: refcoco, refcoco+ or refcocog, with refs(unc).p, (umd) or (google), and instances.json",
    RefCocoSettings,
    read,
)
