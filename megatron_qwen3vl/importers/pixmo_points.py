"""PixMo-Points: rows with an image's address and hash, a label, and points as percentages of the width and height.

The images are not part of the data set: whoever downloads them names each file by the row's ``image_sha256`` or by the
sha256 of its ``image_url`` (as Molmo's own scripts do), or adds a column ``image_path``. Nothing is downloaded here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.choosing import Chooser
from megatron_qwen3vl.importers.fields import NUMBER, member, numbers
from megatron_qwen3vl.importers.files import find_files, lines_of
from megatron_qwen3vl.importers.frame import Entry, Format, Made, Unwanted, needs, option
from megatron_qwen3vl.importers.groups import group
from megatron_qwen3vl.importers.located import NOTHING, converse, one_of
from megatron_qwen3vl.importers.pictures import FRAMES, Photo, find_folder, read_photo
from megatron_qwen3vl.recipes.boxes import objects_json

NAME = "PixMo-Points"
UNITS = ("percent", "pixels")
PATH, URL, SHA256 = "image_path", "image_url", "image_sha256"
ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp")
BATCH = 1024  # rows of Parquet in memory
POINT = (
    "Point to every {}, output the points in JSON.",
    "Point to: {}. Give one point for each as JSON.",
    "Where are the {}? Answer with points in JSON.",
    "Locate all of these by points in JSON format: {}",
)
COUNT = ("How many of these are there: {}?", "Count the {}.", "What is the number of {} in the picture?")
COUNT_BY_POINTS = (
    "Point to each of the {} in JSON, then count them.",
    "Give a point for every {} in JSON, and then their number.",
)


@dataclass(frozen=True)
class PixmoSettings:
    images: str | None = option(None, "folder of the images; null looks for `images` beside SOURCE")
    turns: int = option(6, "most questions of a sample; a picture with more rows gives several samples")
    count: float = option(0.4, "share of the rows that are asked for a number, half of them by points first")
    max_objects: int = option(60, "most points of one answer; rows with more are asked for their number only")
    negatives: bool = option(False, "also rows without a point: answers [] and 0")
    units: str = option("percent", "of x and y: percent, or pixels (PixMo-Count has these)")
    coordinates: str = option("displayed", "what they are about where EXIF turns a picture: the `displayed` picture, "
                              "which the annotators saw, or the `stored` pixels")  # fmt: skip

    def __post_init__(self) -> None:
        problems = one_of("units", self.units, UNITS) + one_of("coordinates", self.coordinates, FRAMES)
        for name, value in (("turns", self.turns), ("max_objects", self.max_objects)):
            if value < 1:
                problems.append(f"{name}: {value} must be at least 1")
        if not 0 <= self.count <= 1:
            problems.append(f"count: {self.count} must be from 0 to 1")
        if problems:
            raise UserError(problems)


@dataclass(frozen=True)
class Row:
    """``sha256`` and ``names``: what the image's bytes hash to (or nothing), and the names its file may have."""

    label: str
    points: Sequence[Sequence[float]]
    sha256: str
    names: Sequence[str]


def read(source: Path, settings: PixmoSettings) -> Iterator[Entry]:
    beside = source if source.is_dir() else source.parent
    folder = find_folder(settings.images, [beside / "images", beside.parent / "images"], source)
    with group(_rows(source)) as by_image:
        total, done = len(by_image), 0
        for image in by_image.names():
            rows = [Row(*row) for row in by_image.of(image)]
            done += len(rows)
            mark = hashlib.sha256(image.encode("utf-8", "surrogatepass")).hexdigest()[:20]
            for chunk in range(-(-len(rows) // settings.turns)):
                some = rows[chunk * settings.turns : (chunk + 1) * settings.turns]
                key = f"{mark}_{chunk}"
                yield Entry(key, partial(_make, folder, some, key, settings), group=mark, part=done / total)


def _rows(source: Path) -> Iterator[tuple[str, list[Any]]]:
    """The image's name among all images, and a ``Row``'s values."""
    files = find_files(source, (".parquet", ".jsonl", ".jsonl.gz"), "Parquet files or JSON lines")
    for path in files:
        for number, values in enumerate(_parquet(path) if path.suffix == ".parquet" else _json_lines(path), 1):
            where = f"{path}, row {number}"
            label = member(values, "label", str, where)
            points = _points(values, where)
            sha256, names = str(values.get(SHA256) or ""), _names(values, where)
            yield sha256 or names[0], [label, points, sha256, names]


def _points(values: Mapping[str, Any], where: str) -> list[list[float]]:
    """A list of {x, y}, as PixMo-Points has it, or two lists, as PixMo-Count."""
    given = member(values, "points", (list, dict), where)
    if isinstance(given, dict):
        x, y = (numbers(given, axis, None, f"{where}: points") for axis in ("x", "y"))
        if len(x) != len(y):
            raise UserError(f"{where}: points.x and points.y have {len(x)} and {len(y)} numbers")
        return [list(pair) for pair in zip(x, y, strict=True)]
    for place, point in enumerate(given):
        if not isinstance(point, Mapping):
            raise UserError(f"{where}: points[{place}] is not {{x, y}}")
    return [
        [member(point, axis, NUMBER, f"{where}: points[{place}]") for axis in ("x", "y")]
        for place, point in enumerate(given)
    ]


def _names(values: Mapping[str, Any], where: str) -> list[str]:
    if values.get(PATH) is not None:
        return [member(values, PATH, str, where)]
    url = member(values, URL, str, where)
    stems = [str(values[SHA256])] if values.get(SHA256) else []
    stems.append(hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest())
    return [stem + ending for stem in stems for ending in ENDINGS]


def _json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    for line in lines_of(path):
        try:
            yield line.object()
        except BadSample as bad:
            raise UserError(f"{path}: {bad}; {NAME} has a row on each line") from None


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    needs("pyarrow", "Parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as table:
            wanted = [name for name in ("label", "points", PATH, URL, SHA256) if name in table.schema_arrow.names]
            for batch in table.iter_batches(BATCH, columns=wanted):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{path}: not readable Parquet: {' '.join(str(error).split())[:200]}") from None


def _make(folder: Path, rows: Sequence[Row], key: str, settings: PixmoSettings) -> Made:
    photo = read_photo(folder, *rows[0].names)
    if rows[0].sha256 and hashlib.sha256(photo.original).hexdigest() != rows[0].sha256:
        raise BadSample(f"the image is not the one that was annotated: its sha256 is not {rows[0].sha256:.64}")
    choose = Chooser(key)
    asked: dict[str, str] = {}
    notes = []
    for row in rows:
        points = _places(row, photo, settings)
        if points is None:
            notes.append(f"{row.label!r:.60}: a point lies outside the picture; units={settings.units}")
        elif points or settings.negatives:
            asked.setdefault(*_ask(row.label, points, choose, settings))
    if notes and not asked:
        raise BadSample(notes[0])
    if not asked:
        raise Unwanted("negatives" if not settings.negatives else NOTHING)
    made = converse(photo, list(asked.items()), "counting" if settings.count == 1 else "grounding")
    return Made(made.files, tuple(notes))


def _places(row: Row, photo: Photo, settings: PixmoSettings) -> list[tuple[int, int]] | None:
    frame = photo.frame(None, settings.coordinates)
    width, height = frame.size
    wide, high = (width / 100, height / 100) if settings.units == "percent" else (1.0, 1.0)
    found = []
    for x, y in row.points:
        point = frame.point(x * wide, y * high)
        if point is None:
            return None
        found.append(point)
    return found


def _ask(label: str, points: Sequence[tuple[int, int]], choose: Chooser, settings: PixmoSettings) -> tuple[str, str]:
    counts = choose.number(1000) < 1000 * settings.count
    located: list[dict[str, object]] = [{"point_2d": list(point), "label": label} for point in points]
    answer = objects_json(located) if located else json.dumps(located)
    if len(points) > settings.max_objects or (counts and (not points or choose.number(2))):
        return choose.pick(COUNT).format(label), str(len(points))
    if counts:
        return choose.pick(COUNT_BY_POINTS).format(label), f"{answer}\n{len(points)}"
    return choose.pick(POINT).format(label), answer


PIXMO_POINTS = Format(
    "pixmo_points",
    "points and counts of PixMo-Points (and PixMo-Count)",
    "its .parquet or .jsonl file, or a folder of them",
    PixmoSettings,
    read,
)
