"""Places in a picture as the model says them: whole thousandths of the width and height, 0 to 1000."""

from __future__ import annotations

import json
from collections.abc import Sequence

Box = tuple[int, int, int, int]  # left, top, right, bottom; pixels have right and bottom outside, as in slices

SCALE = 1000


def box_in_thousandths(box: Box, size: tuple[int, int]) -> Box:
    """The smallest box in thousandths that holds every pixel of ``box``; ``size`` is width, height in pixels."""
    (left, top, right, bottom), (width, height) = box, size
    return left * SCALE // width, top * SCALE // height, -(-right * SCALE // width), -(-bottom * SCALE // height)


def point_in_thousandths(x: float, y: float, size: tuple[int, int]) -> tuple[int, int]:
    """The nearest point in thousandths; ``x`` and ``y`` in pixels from the picture's upper left corner."""
    return round(x * SCALE / size[0]), round(y * SCALE / size[1])


def objects_json(objects: Sequence[dict[str, object]]) -> str:
    """A list of located things, one a line: ``[{"bbox_2d": [l, t, r, b], "label": "red cube"}, ...]``.

    The members' names, ``bbox_2d``, ``point_2d``, ``label`` and ``text_content``, are those of the Qwen3-VL cookbooks.
    """
    return "[\n" + ",\n".join(json.dumps(thing, ensure_ascii=False) for thing in objects) + "\n]"


def box_entry(box: Box, size: tuple[int, int], label: str | None) -> dict[str, object]:
    """``{"bbox_2d": [l, t, r, b], "label": ...}`` of a box in pixels; no label where it is None."""
    return {"bbox_2d": list(box_in_thousandths(box, size))} | ({} if label is None else {"label": label})


def point_entry(point: tuple[float, float], size: tuple[int, int], label: str | None) -> dict[str, object]:
    """``{"point_2d": [x, y], "label": ...}`` of a point in pixels; no label where it is None."""
    return {"point_2d": list(point_in_thousandths(*point, size))} | ({} if label is None else {"label": label})
