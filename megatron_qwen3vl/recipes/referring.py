"""Expressions that single one thing of a scene out, with margins that keep them true under a pixel's error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_qwen3vl.recipes.scenes import PHOTO, Scene, Thing

# the whole name; the shape or colour alone; leftmost, ...; largest, smallest; left of, above, ... another thing
WAYS = ("name", "part", "end", "size", "side")
MARGIN = 0.06  # of the picture's side: how far ahead the leftmost, topmost, ... must be
LARGER = 1.3  # how much larger the largest must be
ENDS = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "bottommost": (1, -1)}
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


def expressions(scene: Scene, target: Thing, ways: Sequence[str]) -> tuple[str, ...]:
    """Every expression of this module, by the ``ways`` out of WAYS, that means ``target`` and nothing else."""
    found = [target.name] if "name" in ways and len(scene.named(target.name)) == 1 else []
    if "part" in ways and target.kind.shape != PHOTO:
        found += _shorter(scene, target)
    for group, word in _groups(scene, target):
        if len(group) > 1 and "end" in ways:
            found += [f"{end} {word}" for end in ENDS if _first(group, end, scene) is target]
        if len(group) > 1 and "size" in ways:
            found += [f"{size} {word}" for size in ("largest", "smallest") if _extreme(group, size) is target]
        if len(group) > 1 and "side" in ways:
            found += _beside(scene, group, word, target)
    return tuple(dict.fromkeys(found))


def _shorter(scene: Scene, target: Thing) -> list[str]:
    """The shape or the colour alone, where that is enough."""
    kinds = [thing.kind for thing in scene.things if thing.kind.shape != PHOTO]
    found = []
    if sum(kind.shape == target.kind.shape for kind in kinds) == 1:
        found.append(target.kind.shape)
    if sum(kind.colour == target.kind.colour for kind in kinds) == 1:
        found.append(f"{target.kind.colour} thing")
    return found


def _groups(scene: Scene, target: Thing) -> Iterator[tuple[tuple[Thing, ...], str]]:
    yield scene.named(target.name), target.name
    if target.kind.shape != PHOTO:
        yield tuple(t for t in scene.things if t.kind.shape == target.kind.shape), target.kind.shape


def _first(group: Sequence[Thing], end: str, scene: Scene) -> Thing | None:
    axis, sign = ENDS[end]
    ordered = sorted(group, key=lambda thing: sign * thing.centre[axis])
    lead = abs(ordered[1].centre[axis] - ordered[0].centre[axis])
    return ordered[0] if lead >= MARGIN * scene.canvas[axis] else None


def _extreme(group: Sequence[Thing], size: str) -> Thing | None:
    ordered = sorted(group, key=lambda thing: thing.size, reverse=size == "largest")
    ratio = ordered[0].size / ordered[1].size
    return ordered[0] if max(ratio, 1 / ratio) >= LARGER else None


def _beside(scene: Scene, group: Sequence[Thing], word: str, target: Thing) -> list[str]:
    """``circle left of the blue square``: the only circle on that side, and the square is the only one of its name."""
    found = []
    for anchor in scene.things:
        if anchor in group or len(scene.named(anchor.name)) > 1:
            continue
        for side, (axis, sign) in SIDES.items():
            margin = MARGIN * scene.canvas[axis]
            ahead = [sign * (thing.centre[axis] - anchor.centre[axis]) for thing in group]
            on_side = [thing for thing, distance in zip(group, ahead, strict=True) if distance > 0]
            if on_side == [target] and all(abs(distance) >= margin for distance in ahead):
                found.append(f"{word} {side} the {anchor.name}")
    return found
