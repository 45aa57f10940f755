"""The formats that ``data import`` reads, by name."""

from __future__ import annotations

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers import text_rows
from megatron_qwen3vl.importers.frame import Format

# Libraries that only some formats need are imported when one is read (frame.needs).
FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        text_rows.JSONL,
        text_rows.PARQUET,
    )
}


def find_format(name: str) -> Format:
    """Raises:
    UserError: no such format.
    """
    if name not in FORMATS:
        raise UserError(f"data import {name}: no such format; choose out of {', '.join(FORMATS)}")
    return FORMATS[name]
