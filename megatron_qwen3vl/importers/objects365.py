"""Objects365 (v1 and v2): COCO's layout with flags of its own, and images in folders ``patch0``, ``patch1``, ..."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.coco import frame_of, keep_box, key_of
from megatron_qwen3vl.importers.coco_json import Listed, open_table
from megatron_qwen3vl.importers.fields import member
from megatron_qwen3vl.importers.frame import Entry, Format, Made, Unwanted, option
from megatron_qwen3vl.importers.located import BoxSettings, Mark, ask, converse, look
from megatron_qwen3vl.importers.pictures import find_folder, read_photo

NAME = "Objects365"
FLAGS = ("fake", "reflected")  # pictures of things; things in mirrors


@dataclass(frozen=True)
class Objects365Settings(BoxSettings):
    leave_out: tuple[str, ...] = option((), f"flags of boxes that are not asked about, out of {','.join(FLAGS)}")
    lower: bool = option(True, "labels in lower case (the source writes `Street Lights`)")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [flag for flag in self.leave_out if flag not in FLAGS]
        if unknown:
            raise UserError(f"leave_out: {unknown[0]} is unknown; there are {', '.join(FLAGS)}")


def _keep(entry: Mapping[str, Any], where: str) -> list[Any]:
    """As COCO's boxes, then the flags."""
    return keep_box(entry, where) + [member(entry, f"is{f}", int, where) if f"is{f}" in entry else 0 for f in FLAGS]


def places_of(file_name: str) -> list[str]:
    """Where an image may lie: the list says ``images/v1/patch8/x.jpg``, its archives unpack to ``patch8/x.jpg``."""
    parts = PurePosixPath(file_name).parts
    return list(dict.fromkeys(["/".join(parts), "/".join(parts[-2:]), parts[-1] if parts else file_name]))


def read(source: Path, settings: Objects365Settings) -> Iterator[Entry]:
    with open_table(source, NAME, _keep) as table:
        split = "val" if "val" in source.stem else "train"
        parents = (source.parent, source.parent.parent)
        guesses = [parent / tail for parent in parents for tail in (f"images/{split}", split, "images")]
        folder = find_folder(settings.images, guesses, source)
        names = {number: table.name_of(number).strip() for number in table.categories}
        if settings.lower:
            names = {number: name.lower() for number, name in names.items()}
        for listed in table.images():
            yield Entry(key_of(listed), partial(_make, names, folder, listed, settings), part=listed.part)


def _make(names: Mapping[int, str], folder: Path, listed: Listed, settings: Objects365Settings) -> Made:
    if not listed.rows and not settings.negatives:
        raise Unwanted("negatives")
    marks = []
    for category, left, top, width, height, crowd, *flags in listed.rows:
        left_out = any(value == 1 for flag, value in zip(FLAGS, flags, strict=True) if flag in settings.leave_out)
        marks.append(Mark(names[category], (left, top, left + width, top + height), crowd == 1, left_out))
    photo = read_photo(folder, *places_of(listed.entry["file_name"]))
    seen = look(marks, frame_of(photo, listed, settings), settings, list(names.values()))
    return converse(photo, ask(key_of(listed), seen, settings), "grounding")


OBJECTS365 = Format(
    "objects365",
    "boxes of Objects365, v1 or v2",
    "its JSON: zhiyuan_objv2_train.json or zhiyuan_objv2_val.json",
    Objects365Settings,
    read,
)
