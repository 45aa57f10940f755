"""The formats that ``data import`` reads, by name."""

from __future__ import annotations

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers import (
    coco,
    mmc4,
    obelics,
    objects365,
    omni3d,
    openimages,
    pairs,
    pdf,
    pixmo_points,
    refcoco,
    text_rows,
    video_captions,
)
from megatron_qwen3vl.importers.frame import Format

# Libraries that only some formats need are imported when one is read (frame.needs).
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        text_rows.JSONL,
        text_rows.PARQUET_TEXT,
        pairs.PAIRS,
        obelics.OBELICS,
        mmc4.MMC4,
        pdf.PDF,
        video_captions.ACTIVITYNET,
        coco.COCO,
        objects365.OBJECTS365,
        openimages.OPENIMAGES,
        refcoco.REFCOCO,
        pixmo_points.PIXMO_POINTS,
        omni3d.OMNI3D,
    )
}


def find_format(name: str) -> Format:
    """Raises:
    UserError: no such format.
    """
    if name not in FORMATS:
        raise UserError(f"data import {name}: no such format; choose out of {', '.join(FORMATS)}")
    return FORMATS[name]
