"""``data build RECIPE OUT``: a domain recipe (YAML) -> shards, one folder for each split.

The same recipe makes the same bytes: every sample has its own random numbers, from (seed, split, sample).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import dacite
import yaml

from megatron_qwen3vl.data.shards import write_shard
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes import (
    boxes_3d,
    captions,
    charts,
    clips,
    code_files,
    counting,
    diagrams,
    digits,
    documents,
    grounding,
    gui,
    interleaved,
    long_documents,
    numbers,
    ocr,
    plain_text,
    spatial,
    tool_calls,
    ui_pages,
    video_events,
)
from megatron_qwen3vl.recipes.record import Record

SPLITS = ("train", "held_out")
T = TypeVar("T")
Progress = Callable[[int, int], None]  # samples written, samples planned


@dataclass(frozen=True)
class Recipe:
    """``splits``: samples of each split. ``settings``: the builder's own, see its module."""

    builder: str
    seed: int
    splits: Mapping[str, int]
    samples_per_shard: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Builder:
    settings: type[Any]
    build: Callable[[Any, int, bool, int], Iterator[Record]]


BUILDERS = {
    "boxes_3d": Builder(boxes_3d.Boxes3DSettings, boxes_3d.build),
    "captions": Builder(captions.CaptionSettings, captions.build),
    "charts": Builder(charts.ChartSettings, charts.build),
    "clips": Builder(clips.ClipSettings, clips.build),
    "code": Builder(code_files.CodeSettings, code_files.build),
    "counting": Builder(counting.CountingSettings, counting.build),
    "diagrams": Builder(diagrams.DiagramSettings, diagrams.build),
    "digits": Builder(digits.DigitSettings, digits.build),
    "documents": Builder(documents.DocumentSettings, documents.build),
    "grounding": Builder(grounding.GroundingSettings, grounding.build),
    "gui": Builder(gui.GuiSettings, gui.build),
    "interleaved": Builder(interleaved.InterleavedSettings, interleaved.build),
    "long_documents": Builder(long_documents.LongDocumentSettings, long_documents.build),
    "numbers": Builder(numbers.NumberSettings, numbers.build),
    "ocr": Builder(ocr.OcrSettings, ocr.build),
    "spatial": Builder(spatial.SpatialSettings, spatial.build),
    "text": Builder(plain_text.TextSettings, plain_text.build),
    "tool_calls": Builder(tool_calls.ToolCallSettings, tool_calls.build),
    "ui_pages": Builder(ui_pages.UiSettings, ui_pages.build),
    "video_events": Builder(video_events.VideoEventSettings, video_events.build),
}


@dataclass(frozen=True)
class SplitSummary:
    name: str
    samples: int
    shards: tuple[Path, ...]
    num_bytes: int


def build(recipe_path: Path, out: Path, progress: Progress | None = None) -> tuple[SplitSummary, ...]:
    """Writes ``out/SPLIT/NNNNN.tar``; shards that an earlier build left there are replaced.

    Raises:
        UserError: the recipe cannot be read or followed, or ``out`` cannot be written.
    """
    recipe, settings = read_recipe(recipe_path)
    planned, done = sum(recipe.splits.values()), 0
    summaries = []
    for split, count in recipe.splits.items():
        records = BUILDERS[recipe.builder].build(settings, count, split == "held_out", recipe.seed)
        try:
            summary = _write_split(out / split, records, recipe.samples_per_shard, _shifted(progress, done, planned))
        except OSError as error:
            raise UserError(f"data build: cannot write {out / split}: {error.strerror}") from error
        done += summary.samples
        summaries.append(summary)
    return tuple(summaries)


def _shifted(progress: Progress | None, done: int, planned: int) -> Callable[[int], None]:
    def report(samples: int) -> None:
        if progress is not None:
            progress(done + samples, planned)

    return report


def _write_split(
    folder: Path, records: Iterator[Record], samples_per_shard: int, report: Callable[[int], None]
) -> SplitSummary:
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.tar"), *folder.glob("*.tar.idx")]:
        old.unlink()
    shards: list[Path] = []
    samples = 0
    for first in records:
        shards.append(folder / f"{len(shards):05d}.tar")
        some = islice(chain([first], records), samples_per_shard)
        samples += write_shard(shards[-1], ((record.key, record.files()) for record in some))
        report(samples)
    return SplitSummary(folder.name, samples, tuple(shards), sum(shard.stat().st_size for shard in shards))


def read_recipe(path: Path) -> tuple[Recipe, Any]:
    """The recipe and its builder's settings; every problem names the file and the key."""
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot read this recipe: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping with {', '.join(_keys(Recipe))}")
    recipe = _typed(Recipe, tree, path, "")
    problems = [
        f"{path}: splits.{s}: unknown; splits are {', '.join(SPLITS)}" for s in recipe.splits if s not in SPLITS
    ]
    if recipe.builder not in BUILDERS:
        problems.append(f"{path}: builder {recipe.builder}: unknown; builders are {', '.join(sorted(BUILDERS))}")
    if recipe.samples_per_shard < 1:
        problems.append(f"{path}: samples_per_shard: {recipe.samples_per_shard} must be at least 1")
    if problems:
        raise UserError(problems)
    return recipe, _typed(BUILDERS[recipe.builder].settings, dict(recipe.settings), path, "settings.")


def _typed(kind: type[T], tree: dict[str, Any], path: Path, prefix: str) -> T:
    known = _keys(kind)
    problems = [f"{path}: {prefix}{key}: unknown key" for key in tree if key not in known]
    problems += [f"{path}: {prefix}{key}: missing" for key in known if key not in tree]
    if problems:
        raise UserError(problems)
    try:
        return dacite.from_dict(kind, tree, dacite.Config(strict=True, cast=[tuple]))
    except dacite.DaciteError as error:
        raise UserError(f"{path}: {prefix or 'recipe: '}{error}") from error


def _keys(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]
