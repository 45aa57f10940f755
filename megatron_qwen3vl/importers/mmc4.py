"""MMC4: a document is a list of sentences and a list of images, each of which stands before one of the sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.files import read_beside
from megatron_qwen3vl.importers.frame import Entry, Format, Made, option, required
from megatron_qwen3vl.importers.interleaved import Shown, Wanted, interleave
from megatron_qwen3vl.importers.rows import JSON, Row, has_fields, rows_of

FIELDS = ("text_list", "image_info")


@dataclass(frozen=True)
class Mmc4Settings:
    images: str = required("folder of the images, or of MMC4's own folders SHARD_images")
    min_similarity: float = option(0.0, "leave out images whose matched_sim is lower")
    min_images: int = option(1, "leave out documents with fewer images than this that can be used")
    max_images: int | None = option(None, "leave out documents with more")
    min_side: int = option(1, "leave images out of their documents whose shorter side has fewer pixels")
    domain: str = option("interleaved", "the samples' domain")

    def __post_init__(self) -> None:
        if not Path(self.images).is_dir():
            raise UserError(f"images: {self.images} is not a folder")


def read(source: Path, settings: Mmc4Settings) -> Iterator[Entry]:
    for row in rows_of(source, JSON, FIELDS, partial(has_fields, FIELDS)):
        yield Entry(row.key, partial(_make, row, settings), part=row.part)


def _make(row: Row, settings: Mmc4Settings) -> Made:
    pieces = _pieces(row.read(), settings.min_similarity, row.where)
    wanted = Wanted(settings.min_images, settings.max_images, settings.min_side)
    shard = row.key.rsplit("_", 1)[0]
    find = partial(_find, Path(settings.images), f"{shard}_images")
    return interleave(pieces, find, wanted, settings.domain, row.where)


def _find(folder: Path, of_shard: str, name: str) -> bytes:
    inside = f"{of_shard}/{name}" if (folder / of_shard).is_dir() else name
    return read_beside(folder, inside)


def _pieces(row: Mapping[str, Any], min_similarity: float, where: str) -> list[str | Shown]:
    """Sentences in a row become one text; an image stands before the sentence that it was matched to."""
    sentences, images = row.get("text_list"), row.get("image_info")
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise BadSample(f"{where}: 'text_list' is not a list of sentences")
    if not isinstance(images, list):
        raise BadSample(f"{where}: 'image_info' is not a list")
    before: dict[int, list[str]] = {}
    for number, shown in enumerate(images):
        name, place, similarity = _image(shown, f"{where}: image_info[{number}]", len(sentences))
        if similarity >= min_similarity:
            before.setdefault(place, []).append(name)
    pieces: list[str | Shown] = []
    waiting: list[str] = []
    for place, sentence in enumerate(sentences):
        if place in before:
            pieces += [" ".join(waiting), *map(Shown, before[place])]
            waiting = []
        waiting.append(sentence)
    return [*pieces, " ".join(waiting)]


def _image(shown: Any, where: str, sentences: int) -> tuple[str, int, float]:
    """Its file's name, the number of its sentence, and how similar both are."""
    if not isinstance(shown, Mapping) or not isinstance(shown.get("image_name"), str):
        raise BadSample(f"{where} has no 'image_name'")
    place, similarity = shown.get("matched_text_index"), shown.get("matched_sim", 0.0)
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < sentences:
        raise BadSample(f"{where}: 'matched_text_index' {place!r:.40} is not the number of a sentence")
    if not isinstance(similarity, int | float):
        raise BadSample(f"{where}: 'matched_sim' is not a number")
    return shown["image_name"], place, float(similarity)


MMC4 = Format(
    "mmc4",
    "Multimodal C4: interleaved documents of sentences and images",
    "a docs_..._shard_N_vM.jsonl (.zip and .gz too), or a folder of them",
    Mmc4Settings,
    read,
)
