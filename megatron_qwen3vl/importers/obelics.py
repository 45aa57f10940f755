"""OBELICS: ``images`` and ``texts`` are lists of one length; at each place one holds something and the other is null.

The images are addresses. Nothing is fetched: they are found in a folder that some other program has filled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.files import read_beside
from megatron_qwen3vl.importers.frame import Entry, Format, Made, option, required
from megatron_qwen3vl.importers.groups import group
from megatron_qwen3vl.importers.interleaved import Shown, Wanted, interleave
from megatron_qwen3vl.importers.rows import JSON, PARQUET, Row, has_fields, rows_of

FIELDS = ("images", "texts")
BY_HASH = ("sha256", "md5")
IMG2DATASET = "img2dataset"
_ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tiff")
Find = Callable[[str], bytes]


@dataclass(frozen=True)
class ObelicsSettings:
    images: str = required("folder with the files of the images")
    find: str = option("sha256", "files named by the address's sha256 or md5; img2dataset; or a list {url, file}")
    min_images: int = option(1, "leave out documents with fewer images than this that can be used")
    max_images: int | None = option(None, "leave out documents with more")
    min_side: int = option(1, "leave images out of their documents whose shorter side has fewer pixels")
    domain: str = option("interleaved", "the samples' domain")

    def __post_init__(self) -> None:
        problems = []
        if not Path(self.images).is_dir():
            problems.append(f"images: {self.images} is not a folder")
        if self.find not in (*BY_HASH, IMG2DATASET) and not Path(self.find).is_file():
            problems.append(f"find: {self.find} is neither a file nor one of {', '.join((*BY_HASH, IMG2DATASET))}")
        if problems:
            raise UserError(problems)


def read(source: Path, settings: ObelicsSettings) -> Iterator[Entry]:
    with _finder(settings) as find:
        for row in rows_of(source, (*PARQUET, *JSON), FIELDS, partial(has_fields, FIELDS)):
            yield Entry(row.key, partial(_make, row, find, settings), part=row.part)


@contextmanager
def _finder(settings: ObelicsSettings) -> Iterator[Find]:
    folder = Path(settings.images)
    if settings.find in BY_HASH:
        yield partial(_by_hash, folder, settings.find)
        return
    rows = _of_img2dataset(folder) if settings.find == IMG2DATASET else _of_list(Path(settings.find))
    with group(rows) as files:
        yield lambda address: _first(folder, [n for name in files.of(address)[:1] for n in _with_endings(name)])


def _by_hash(folder: Path, kind: str, address: str) -> bytes:
    digest = hashlib.new(kind, address.encode("utf-8", "surrogatepass")).hexdigest()
    return _first(folder, [*_with_endings(digest), *_with_endings(f"{digest[:2]}/{digest}")])


def _with_endings(name: str) -> list[str]:
    return [name + ending for ending in _ENDINGS]


def _first(folder: Path, names: Sequence[str]) -> bytes:
    there = next((name for name in names if (folder / name).is_file()), None)
    if there is None:
        raise BadSample("its file is not there")
    return read_beside(folder, there)


def _of_img2dataset(folder: Path) -> Iterator[tuple[str, str]]:
    """Its ``files`` output: 00000.parquet says which address is 00000/KEY.jpg."""
    fields = ("url", "key", "status")
    for row in rows_of(folder, PARQUET, fields, partial(has_fields, fields)):
        values = row.read()
        if values["status"] == "success":
            yield str(values["url"]), f"{row.key.rsplit('_', 1)[0]}/{values['key']}"


def _of_list(path: Path) -> Iterator[tuple[str, str]]:
    """``{"url": ..., "file": ...}``, a name inside the folder, with or without its ending."""
    fields = ("url", "file")
    for row in rows_of(path, JSON, fields, partial(has_fields, fields)):
        try:
            values = row.read()
        except BadSample as bad:
            raise UserError(f"data import: {path}: {bad}") from None
        if not all(isinstance(values.get(name), str) for name in fields):
            raise UserError(f"data import: {path}: {row.where} has no texts 'url' and 'file'")
        yield values["url"], values["file"]


def _make(row: Row, find: Find, settings: ObelicsSettings) -> Made:
    pieces = _pieces(row.read(), row.where)
    wanted = Wanted(settings.min_images, settings.max_images, settings.min_side)
    return interleave(pieces, find, wanted, settings.domain, row.where)


def _pieces(row: Mapping[str, Any], where: str) -> list[str | Shown]:
    lists = [row.get(name) for name in FIELDS]
    if not all(isinstance(each, list) for each in lists) or len(lists[0] or ()) != len(lists[1] or ()):
        raise BadSample(f"{where}: 'images' and 'texts' are not two lists of one length")
    pieces: list[str | Shown] = []
    for place, (shown, words) in enumerate(zip(*lists, strict=True)):
        if (shown is None) == (words is None) or not isinstance(words if shown is None else shown, str):
            raise BadSample(f"{where}: place {place} should hold an image's address or a text, and one of them")
        pieces.append(words if shown is None else Shown(shown))
    return pieces


OBELICS = Format(
    "obelics",
    "OBELICS: interleaved documents; images by address, found in a local folder",
    "a .parquet or .jsonl file, or a folder of them, with images and texts",
    ObelicsSettings,
    read,
)
