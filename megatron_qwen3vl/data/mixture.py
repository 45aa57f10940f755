"""The mixture file of a stage: YAML that lists its sources.

sources:
  - {name: captions, shards: captions/train, weight: 0.6}
  - {name: text, shards: [text-0.tar, text-1.tar], weight: 0.4}

Optional for a source: ``min_pixels``, ``max_pixels`` (of an image), ``timestamps`` (seconds, clock, mixed), ``fps``,
``max_frames`` (taken from a video file), ``slice`` (neighbouring samples that a lane gets together; 1), ``too_long``
(``split`` a document longer than the sequence into parts, or ``skip`` it). ``weight`` is the source's share of tokens;
only proportions matter. ``shards`` is relative to the folder of the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megatron_qwen3vl.config.schema import MixtureConfig, SourceConfig
from megatron_qwen3vl.errors import UserError

_KEYS = ("name", "shards", "weight", "min_pixels", "max_pixels", "timestamps", "fps", "max_frames", "slice", "too_long")
_FEWEST_FRAMES, _HIGHEST_FPS = 4, 1000
_LONGEST_SLICE = 65_536
_TOO_LONG = ("split", "skip")
_TIMESTAMPS = ("seconds", "clock", "mixed")
# a sample's key is SOURCE/SHARD/KEY
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def load_mixture(path: str | Path) -> MixtureConfig:
    """The sources of a mixture file. Raises UserError with every problem of the file, each with its file and key."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"mixture {path}: no such file") from None
    except OSError as error:
        raise UserError(f"mixture {path}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        # not the line itself: an address in it may be signed
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"mixture {path}: not valid YAML: {where}{error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"mixture {path}: not valid YAML: {' '.join(str(error).split())}") from None
    entries = tree.get("sources") if isinstance(tree, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"mixture {path}: sources: must list at least one {{name, shards, weight}}")
    problems = [f"{key}: unknown key; a mixture has only sources" for key in tree if key != "sources"]
    first_with: dict[str, int] = {}
    for place, entry in enumerate(entries):
        problems += [f"sources[{place}]{problem}" for problem in _problems(entry)]
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str):
            if name in first_with:
                problems.append(f"sources[{place}].name: {name} is taken by sources[{first_with[name]}]; rename one")
            first_with.setdefault(name, place)
    if problems:
        raise UserError([f"mixture {path}: {problem}" for problem in problems])
    return MixtureConfig(str(path), tuple(_source(entry) for entry in entries))


def _source(entry: Mapping[str, Any]) -> SourceConfig:
    shards = entry["shards"]
    return SourceConfig(
        name=entry["name"],
        shards=shards if isinstance(shards, str) else tuple(shards),
        weight=float(entry["weight"]),
        min_pixels=entry.get("min_pixels"),
        max_pixels=entry.get("max_pixels"),
        timestamps=entry.get("timestamps", "mixed"),
        fps=float(entry.get("fps", 2.0)),
        max_frames=entry.get("max_frames"),
        slice=entry.get("slice", 1),
        too_long=entry.get("too_long", "split"),
    )


def _problems(entry: object) -> list[str]:
    """Each begins with the key, as ``.key: what is wrong``."""
    if not isinstance(entry, dict):
        return [f": must be {{name, shards, weight}}, is {entry!r}"]
    problems = [f".{key}: unknown key; a source has {', '.join(_KEYS)}" for key in entry if key not in _KEYS]
    problems += [f".{key}: missing" for key in _KEYS[:3] if key not in entry]
    name, shards, weight = entry.get("name"), entry.get("shards"), entry.get("weight")
    if "name" in entry and not (isinstance(name, str) and _NAME.fullmatch(name)):
        problems.append(f".name: {name!r} must be letters, digits, '_', '.' and '-'")
    if "shards" in entry and not _are_shards(shards):
        problems.append(f".shards: {shards!r} must be a path, a pattern, an address or a list of them")
    if "weight" in entry and not _is_share(weight):
        problems.append(f".weight: {weight!r} must be a number greater than 0; take the source out to leave it unused")
    limits = {key: entry[key] for key in ("min_pixels", "max_pixels") if entry.get(key) is not None}
    wrong = [key for key, value in limits.items() if type(value) is not int or value < 1]
    problems += [f".{key}: {limits[key]!r} must be a positive integer" for key in wrong]
    if len(limits) == 2 and not wrong and limits["min_pixels"] > limits["max_pixels"]:
        problems.append(f".min_pixels: {limits['min_pixels']} is more than max_pixels {limits['max_pixels']}")
    if "timestamps" in entry and entry["timestamps"] not in _TIMESTAMPS:
        problems.append(f".timestamps: {entry['timestamps']!r} must be one of {', '.join(_TIMESTAMPS)}")
    fps, most = entry.get("fps", 2.0), entry.get("max_frames")
    if not _is_share(fps) or fps > _HIGHEST_FPS:
        problems.append(f".fps: {fps!r} must be a number of frames a second greater than 0")
    if most is not None and (type(most) is not int or most < _FEWEST_FRAMES):
        problems.append(f".max_frames: {most!r} must be an integer of at least {_FEWEST_FRAMES}, or null")
    if "too_long" in entry and entry["too_long"] not in _TOO_LONG:
        problems.append(f".too_long: {entry['too_long']!r} must be one of {', '.join(_TOO_LONG)}")
    size = entry.get("slice", 1)
    if type(size) is not int or not 1 <= size <= _LONGEST_SLICE:
        problems.append(f".slice: {size!r} must be an integer of 1 to {_LONGEST_SLICE} samples")
    return problems


def _are_shards(value: object) -> bool:
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(isinstance(item, str) and item for item in listed)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
