"""A domain of data_recipes, built small, and answers made false."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from megatron_qwen3vl.recipes.build import build
from megatron_qwen3vl.recipes.reader import ReadSample, read_samples

DOMAINS = Path(__file__).parents[3] / "data_recipes" / "domains"


def built(domain: str, folder: Path, split: str = "train", count: int = 200) -> list[ReadSample]:
    """``count`` samples of a split, by the repository's recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = yaml.safe_load((DOMAINS / f"{domain}.yaml").read_text()) | {"splits": {split: count}}
    path = folder / f"{domain}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    build(path, folder / domain)
    return list(read_samples(folder / domain / split))


def falsified(answer: str) -> Iterator[str]:
    """The answer with one number of its places changed by 60 thousandths, with one entry less, or with another name."""
    if answer.startswith(("{", "[")):
        body, _, rest = answer.rpartition("\n") if not answer.endswith(("]", "}")) else (answer, "", "")
        tail = f"\n{rest}" if rest else ""
        entries = json.loads(body)
        first = entries[0] if isinstance(entries, list) else entries
        place = next((key for key in ("bbox_2d", "point_2d") if key in first), None)
        if place == "bbox_2d":
            for index in range(4):
                moved = [v + (60 if index > 1 else -60) * (n == index) for n, v in enumerate(first[place])]
                changed = first | {place: moved}
                yield json.dumps([changed, *entries[1:]] if isinstance(entries, list) else changed) + tail
        elif place == "point_2d":
            changed = first | {place: [(v + 500) % 1000 for v in first[place]]}
            yield json.dumps([changed, *entries[1:]] if isinstance(entries, list) else changed) + tail
        if isinstance(entries, list) and len(entries) > 1:
            yield json.dumps(entries[1:]) + tail
        if "label" in first:
            changed = first | {"label": "grey elephant"}
            yield json.dumps([changed, *entries[1:]] if isinstance(entries, list) else changed) + tail
    else:
        yield re.sub(r"\d+$", lambda n: str(int(n.group()) + 1), answer) if answer[-1].isdigit() else f"{answer}s"
