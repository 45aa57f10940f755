"""The layout that COCO began and many share: one JSON object with ``images``, ``annotations`` and ``categories``.

Read without holding it: annotations and images go through temporary files (``groups``), so memory does not grow with
the data set. The JSON itself is passed over once for each of its lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.fields import elements, member
from megatron_qwen3vl.importers.groups import Groups, group


@dataclass(frozen=True)
class Listed:
    """An image of the list (its ``id`` and ``image_fields``), with its annotations as ``keep`` made them.

    ``part``: how far down the list, 0 to 1.
    """

    id: int | str
    entry: Mapping[str, Any]
    rows: Sequence[Any]
    part: float


@dataclass(frozen=True)
class Table:
    """``categories``: by id, as the file has them."""

    path: Path
    fmt: str
    categories: Mapping[int, Mapping[str, Any]]
    annotations: Groups
    listed: Groups

    def images(self) -> Iterator[Listed]:
        """In the order of the list."""
        count = len(self.listed)
        for number, entry in enumerate(self.listed.rows()):
            yield Listed(entry["id"], entry, self.annotations.of(entry["id"]), (number + 1) / count)

    def name_of(self, category: int) -> str:
        return str(self.categories[category]["name"])


SIZED = {"file_name": str, "width": int, "height": int}  # of an image


def read_categories(path: Path, fmt: str) -> dict[int, dict[str, Any]]:
    """By id. Raises UserError where one lacks id or name."""
    found = {}
    for number, entry in enumerate(elements(path, "categories", fmt)):
        where = f"{path}: categories[{number}]"
        found[member(entry, "id", int, where)] = entry
        member(entry, "name", str, where)
    return found


@contextmanager
def open_table(
    path: Path,
    fmt: str,
    keep: Callable[[Mapping[str, Any], str], Any],
    with_categories: bool = True,
    image_fields: Mapping[str, Any] = SIZED,
) -> Iterator[Table]:
    """``keep`` (annotation, where it stands) gives what is kept of an annotation: something that JSON can hold.

    Raises:
        UserError: the file is not in this layout; the message names the field.
    """
    if path.is_dir():
        files = sorted(path.glob("*.json")) or sorted(path.glob("annotations/*.json"))
        names = ", ".join(str(file) for file in files[:6])
        raise UserError(f"{path}: {fmt} is read from its JSON file; name " + (f"one of {names}" if names else "it"))
    fields = {"id": (int, str), **image_fields}
    categories = read_categories(path, fmt) if with_categories else {}

    def images() -> Iterator[tuple[int | str, Any]]:
        for number, entry in enumerate(elements(path, "images", fmt)):
            kept = {name: member(entry, name, kinds, f"{path}: images[{number}]") for name, kinds in fields.items()}
            yield kept["id"], kept

    def annotations() -> Iterator[tuple[int | str, Any]]:
        for number, entry in enumerate(elements(path, "annotations", fmt)):
            where = f"{path}: annotations[{number}]"
            if with_categories and member(entry, "category_id", int, where) not in categories:
                raise UserError(f"{where}.category_id is {entry['category_id']}, which `categories` does not have")
            yield member(entry, "image_id", (int, str), where), keep(entry, where)

    with group(images()) as listed, group(annotations()) as kept:
        yield Table(path, fmt, categories, kept, listed)
