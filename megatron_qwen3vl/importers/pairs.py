"""Caption pairs as img2dataset writes them (LAION, DataComp, COYO): tars of KEY.jpg, KEY.txt and KEY.json.

Such shards are read without any import. Importing them filters, takes another caption, or cuts new shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_qwen3vl.data.limits import IMAGE_EXTENSIONS
from megatron_qwen3vl.data.shards import Group, Member, Shard, find_shards, read_member, scan
from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.files import picture, sample
from megatron_qwen3vl.importers.frame import Entry, Format, Made, Unwanted, clean_key, option
from megatron_qwen3vl.recipes.record import document, image, text


@dataclass(frozen=True)
class PairSettings:
    caption: str = option("txt", "where the caption is: txt (the file KEY.txt), or a field of KEY.json")
    similarity: str = option("similarity", "field of KEY.json for min_similarity; DataComp: clip_l14_similarity_score")
    min_similarity: float | None = option(None, "leave out pairs below, and pairs without that field")
    min_side: int = option(1, "leave out images whose shorter side has fewer pixels")
    max_aspect: float | None = option(None, "leave out images whose longer side is more than so many shorter ones")
    min_chars: int = option(1, "leave out shorter captions")
    max_chars: int | None = option(None, "leave out longer captions")
    where: tuple[str, ...] = option((), "conditions on KEY.json, all of them: FIELD<NUMBER, FIELD>NUMBER, FIELD=TEXT")
    domain: str = option("caption", "the samples' domain")

    def __post_init__(self) -> None:
        problems = []
        for condition in self.where:
            try:
                Condition.of(condition)
            except ValueError as error:
                problems.append(f"where: {condition}: {error}")
        if self.max_aspect is not None and self.max_aspect < 1:
            problems.append(f"max_aspect: {self.max_aspect} must be at least 1")
        if problems:
            raise UserError(problems)


@dataclass(frozen=True)
class Condition:
    field: str
    sign: str
    value: str

    @classmethod
    def of(cls, words: str) -> Condition:
        """Raises ValueError: not a condition."""
        sign = next((each for each in words if each in "<>="), None)
        if sign is None:
            raise ValueError("is not FIELD<NUMBER, FIELD>NUMBER or FIELD=TEXT")
        field, _, value = words.partition(sign)
        if not field or not value:
            raise ValueError("lacks a field or a value")
        if sign != "=":
            float(value)
        return cls(field, sign, value)

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """A field that is not there, or not a number where one is compared, does not hold."""
        found = facts.get(self.field)
        if self.sign == "=":
            return found is not None and str(found) == self.value
        number = _number(found)
        if number is None:
            return False
        return number < float(self.value) if self.sign == "<" else number > float(self.value)


def read(source: Path, settings: PairSettings) -> Iterator[Entry]:
    conditions = [Condition.of(words) for words in settings.where]
    shards = find_shards(str(source.absolute()), source.absolute().parent)
    first = True
    for number, shard in enumerate(shards):
        found = scan(shard)
        for line in found.damage:
            yield Entry(clean_key(shard.name), partial(_damaged, line), part=number / len(shards))
        for place, group in enumerate(found.groups, 1):
            if first:
                _check(shard, group, settings)
            first = False
            part = (number + place / len(found.groups)) / len(shards)
            yield Entry(clean_key(group.key), partial(_make, shard, group, settings, conditions), part=part)


def _damaged(line: str) -> Made:
    raise BadSample(line)


def _check(shard: Shard, group: Group, settings: PairSettings) -> None:
    names = {member.name for member in group.members}
    needed = "txt" if settings.caption == "txt" else "json"
    problems = []
    if not any(name.lower() in IMAGE_EXTENSIONS for name in names):
        problems.append(f"no image ({', '.join(IMAGE_EXTENSIONS)})")
    if needed not in names:
        problems.append(f"no {group.key}.{needed}; caption={settings.caption} asks for it")
    if problems:
        there = f"it has {', '.join(sorted(names))}"
        raise UserError([f"data import: {shard.name}: {group.key} has {problem}; {there}" for problem in problems])


def _make(shard: Shard, group: Group, settings: PairSettings, conditions: list[Condition]) -> Made:
    pictures = [member for member in group.members if member.name.lower() in IMAGE_EXTENSIONS]
    if len(pictures) != 1:
        raise BadSample(f"has {len(pictures)} images")
    members = {member.name: member for member in group.members}
    facts = _facts(shard, group.key, members)
    caption = _caption(shard, group.key, members, facts, settings.caption)
    _check_facts(facts, caption, settings, conditions)
    found = picture(read_member(shard, group.key, pictures[0]))
    short, long = sorted((found.width, found.height))
    if short < settings.min_side:
        raise Unwanted("min_side")
    if settings.max_aspect is not None and long > settings.max_aspect * short:
        raise Unwanted("max_aspect")
    name = f"0.{found.ending}"
    return sample(document([image(name), text(caption)], settings.domain), {name: found.data})


def _check_facts(
    facts: Mapping[str, Any], caption: str, settings: PairSettings, conditions: list[Condition]
) -> None:
    if settings.min_similarity is not None:
        similarity = _number(facts.get(settings.similarity))
        if similarity is None or not similarity >= settings.min_similarity:  # NaN too
            raise Unwanted("min_similarity")
    if not all(condition.holds(facts) for condition in conditions):
        raise Unwanted("where")
    if len(caption) < settings.min_chars:
        raise Unwanted("min_chars")
    if settings.max_chars is not None and len(caption) > settings.max_chars:
        raise Unwanted("max_chars")


def _facts(shard: Shard, key: str, members: Mapping[str, Member]) -> dict[str, Any]:
    if "json" not in members:
        return {}
    try:
        facts = json.loads(read_member(shard, key, members["json"]))
    except (ValueError, RecursionError) as error:
        raise BadSample(f".json is not JSON: {error}") from None
    if not isinstance(facts, dict):
        raise BadSample(".json is not an object")
    return facts


def _caption(shard: Shard, key: str, members: Mapping[str, Member], facts: Mapping[str, Any], name: str) -> str:
    if name != "txt":
        if not isinstance(facts.get(name), str):
            raise BadSample(f".json has no text '{name}'")
        return str(facts[name])
    if "txt" not in members:
        raise BadSample("has no .txt")
    try:
        return read_member(shard, key, members["txt"]).decode()
    except UnicodeDecodeError as error:
        raise BadSample(f".txt is not UTF-8 (byte {error.start})") from None


def _number(value: Any) -> float | None:
    """Some tools write numbers as texts."""
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


PAIRS = Format(
    "pairs",
    "caption pairs in webdataset tars (img2dataset; LAION, DataComp)",
    "a .tar, or a folder of tars or of loose files, with KEY.jpg, KEY.txt and KEY.json",
    PairSettings,
    read,
)
