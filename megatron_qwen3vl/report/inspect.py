"""``data inspect``: figures as text, and, where a file is named, a page with packs to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megatron_qwen3vl.config.schema import RunConfig
from megatron_qwen3vl.data.inspect import as_text, holdings, measure_fill, open_path, packings, shortest_for_all
from megatron_qwen3vl.data.preview import first_packs, samples_of_other_domains
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.data.vision import VisionLimits
from megatron_qwen3vl.report.inspection import Inspection, write_inspection
from megatron_qwen3vl.report.pack_view import Look, shown_domains

MOST_PACKS, SHOWN_TOKENS = 4, 65_536
SAMPLES_OF_A_DOMAIN = 2


def inspect_path(path: Path, config: RunConfig, tokenizer: Tokenizer, limits: VisionLimits, page: Path | None) -> str:
    """The text about a mixture, a folder or a tar; the page is written to ``page``.

    Raises:
        UserError: a mixture that cannot be read, no shards there, a stale index, or a page that cannot be written.
    """
    sources, weights = open_path(path, tokenizer, limits, config.model, config.storage)
    vision = config.model.vision_config
    held = [holdings(source, vision) for source in sources]
    choices, own = packings(config, path)
    fills = [measure_fill(sources, weights, packing) for packing in choices]
    if page is not None:
        length = shortest_for_all(fills, sum(h.num_unusable for h in held))
        if own is None:
            own = replace(choices[0], sequence_length=length) if length is not None else None
        elif not next(fill.packs for fill in fills if fill.sequence_length == own.sequence_length):
            own = None
        count = max(1, min(MOST_PACKS, SHOWN_TOKENS // own.sequence_length)) if own is not None else 0
        packs = first_packs(sources, weights, own, count, tokenizer.pad_id) if own is not None else []
        others = samples_of_other_domains(sources, shown_domains(packs), SAMPLES_OF_A_DOMAIN, tokenizer.pad_id)
        asked = {source.name: weight / sum(weights) for source, weight in zip(sources, weights, strict=True)}
        found = Inspection(str(path), held, fills, asked, own, packs, others)
        write_inspection(page, found, Look(tokenizer, vision, config.loss.exponent))
    return as_text(held, fills)
