"""What shards hold, as text (``data inspect``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_qwen3vl.config.schema import ModelConfig, SourceConfig, VisionConfig
from megatron_qwen3vl.data.mixture import load_mixture
from megatron_qwen3vl.data.source import Source, open_source
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.data.vision import VisionLimits

_BAR = 40


def inspect_path(path: Path, tokenizer: Tokenizer, limits: VisionLimits, model: ModelConfig) -> str:
    """A page about each source of a mixture file, or about a folder of shards or one tar.

    Raises:
        UserError: a mixture that cannot be read, no shards there, or a stale index.
    """
    configs: tuple[SourceConfig, ...] = (SourceConfig(path.resolve().stem, str(path.resolve()), 1.0),)
    if path.suffix in (".yaml", ".yml"):
        configs = load_mixture(path).sources
    sources = [open_source(config, path.resolve().parent, tokenizer, limits, model) for config in configs]
    return summary(sources, model.vision_config)


def summary(sources: Sequence[Source], vision: VisionConfig) -> str:
    """Samples, tokens, visual tokens, domains and a histogram of lengths, one page per source."""
    return "\n\n".join(_page(source, vision) for source in sources)


def _page(source: Source, vision: VisionConfig) -> str:
    usable = source.lengths > 0
    visual = source.patches.astype(np.int64) // vision.spatial_merge_size**2
    lines = [
        f"{source.name}",
        f"  samples        {usable.sum():>14,}",
        f"  tokens         {source.lengths.sum(dtype=np.int64):>14,}",
        f"  visual tokens  {visual.sum():>14,}",
        "  domains",
    ]
    domains = Counter(source.domain(i) for i in np.flatnonzero(usable).tolist())
    lines += [f"    {name:<24} {count:>10,}" for name, count in domains.most_common()]
    lines += ["  tokens per sample", *_histogram(source.lengths[usable])]
    bad = np.flatnonzero(~usable).tolist()
    if bad:
        lines.append(f"  cannot be used {len(bad):>14,}")
        lines += [f"    {source.key(i)}: {source.reason(i)}" for i in bad[:10]]
    lines += [f"  damaged: {line}" for line in source.damage]
    return "\n".join(lines)


def _histogram(lengths: np.ndarray) -> list[str]:
    """One row per power of two."""
    if not len(lengths):
        return []
    powers = np.floor(np.log2(lengths)).astype(int)
    counts = np.bincount(powers)
    rows = []
    for power in range(int(powers.min()), len(counts)):
        bar = "#" * int(np.ceil(_BAR * counts[power] / counts.max()))
        rows.append(f"    {2**power:>9,} - {2 ** (power + 1) - 1:>9,} {counts[power]:>10,} {bar}")
    return rows
