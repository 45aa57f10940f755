"""What shards hold and how they pack (``data inspect``): figures, and those as text. Nothing is decoded here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron_qwen3vl.config.paths import find_path
from megatron_qwen3vl.config.schema import ModelConfig, RunConfig, SourceConfig, StorageConfig, VisionConfig
from megatron_qwen3vl.data.lanes import Lane, Mixture
from megatron_qwen3vl.data.mixture import load_mixture
from megatron_qwen3vl.data.source import Source, open_source
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.data.vision import VisionLimits
from megatron_qwen3vl.errors import UserError

RECIPE_LENGTHS = (8_192, 32_768, 262_144)  # sequence lengths of the published stages
_BAR = 40
_LISTED = 10  # samples that cannot be used
_PLANNED = 1 << 19  # tokens that a fill is measured on, about
_FEWEST_PACKS, _MOST_PACKS = 4, 128


@dataclass(frozen=True)
class Amount:
    samples: int
    tokens: int  # with visual ones
    visual: int


@dataclass(frozen=True)
class Holdings:
    """What a source holds. ``histogram`` counts samples of 2^k to 2^(k+1) - 1 tokens, by k."""

    name: str
    total: Amount
    domains: Mapping[str, Amount]
    histogram: Mapping[int, int]
    num_unusable: int
    unusable: Sequence[tuple[str, str]]  # key and reason of the first ones
    damage: Sequence[str]


@dataclass(frozen=True)
class Packing:
    """What decides which samples make a pack (docs/data_flow.md)."""

    stage: str
    seed: int
    lanes: int
    lookahead: int
    sequence_length: int


@dataclass(frozen=True)
class Fill:
    """Packs of one sequence length, planned and not read. ``tokens`` by source; ``problem`` where there are none."""

    sequence_length: int
    packs: int
    samples: int
    left_out: int
    tokens: Mapping[str, int]
    problem: str | None = None

    @property
    def share(self) -> float:
        return sum(self.tokens.values()) / (self.packs * self.sequence_length)


def open_path(
    path: Path, tokenizer: Tokenizer, limits: VisionLimits, model: ModelConfig, storage: StorageConfig | None = None
) -> tuple[list[Source], list[float]]:
    """The sources of a mixture file and their weights; or one source, a folder of shards or a tar.

    A domain's folder (with ``train`` and ``held_out`` inside) is all its shards.

    Args:
        storage: how addresses in a mixture file are read; None refuses them.

    Raises:
        UserError: a mixture that cannot be read, no shards there, or a stale index.
    """
    configs: tuple[SourceConfig, ...] = (SourceConfig(path.resolve().stem, str(path.resolve()), 1.0),)
    if path.suffix in (".yaml", ".yml"):
        configs = load_mixture(path).sources
    base, indexes = path.resolve().parent, Path(storage.indexes) if storage and storage.indexes else None
    sources = [open_source(config, base, tokenizer, limits, model, indexes, storage=storage) for config in configs]
    return sources, [config.weight for config in configs]


def holdings(source: Source, vision: VisionConfig) -> Holdings:
    usable = np.flatnonzero(source.lengths > 0)
    visual = source.patches.astype(np.int64) // vision.spatial_merge_size**2
    rows_of: dict[str, list[int]] = {}
    for row in usable.tolist():
        rows_of.setdefault(source.domain(row), []).append(row)

    def amount(rows: np.ndarray) -> Amount:
        return Amount(len(rows), int(source.lengths[rows].sum(dtype=np.int64)), int(visual[rows].sum()))

    by_size = sorted(rows_of.items(), key=lambda item: -len(item[1]))
    powers = np.floor(np.log2(source.lengths[usable])).astype(int) if len(usable) else np.zeros(0, int)
    bad = np.flatnonzero(source.lengths <= 0).tolist()
    return Holdings(
        name=source.name,
        total=amount(usable),
        domains={name: amount(np.array(rows)) for name, rows in by_size},
        histogram={power: int((powers == power).sum()) for power in range(*_range(powers))},
        num_unusable=len(bad),
        unusable=[(source.key(row), source.reason(row)) for row in bad[:_LISTED]],
        damage=source.damage,
    )


def _range(values: np.ndarray) -> tuple[int, int]:
    return (int(values.min()), int(values.max()) + 1) if len(values) else (0, 0)


def packings(config: RunConfig, path: Path) -> tuple[list[Packing], Packing | None]:
    """How to pack at each sequence length of the configuration and of the recipe, shortest first; and the packing of
    the stage whose mixture ``path`` is, if it is one's."""
    stages = {name: config.stages[name] for name in ("s0", "s1", "s2", "s3")}
    own = [name for name, stage in stages.items() if find_path(stage.mixture).resolve() == path.resolve()]
    name = next((name for name in own if name in config.run.stages), own[0] if own else "s1")
    stage = stages[name]
    base = Packing(name, config.run.seed, stage.global_batch_size, config.data.lookahead, stage.sequence_length)
    lengths = sorted({*RECIPE_LENGTHS, *(stage.sequence_length for stage in stages.values())})
    return [replace(base, sequence_length=length) for length in lengths], base if own else None


def shortest_for_all(fills: Sequence[Fill], num_unusable: int) -> int | None:
    """The shortest sequence length that every usable sample fits, else the longest at which packs can be made."""
    possible = [fill for fill in fills if fill.packs]
    fitting = [fill.sequence_length for fill in possible if fill.left_out == num_unusable]
    return next(iter([*fitting, *(fill.sequence_length for fill in reversed(possible))]), None)


def measure_fill(sources: Sequence[Source], weights: Sequence[float], packing: Packing) -> Fill:
    """Plan the first packs of the first lane, as the loader does: about half a million tokens, 4 to 128 packs."""
    length = packing.sequence_length
    try:
        mixture = Mixture(sources, weights, packing.seed, packing.stage, packing.lanes, length)
    except UserError as error:
        return Fill(length, 0, 0, 0, {}, "; ".join(error.problems))
    lane = Lane(0, mixture, packing.lookahead * length, None)
    packs = min(max(_FEWEST_PACKS, _PLANNED // length), _MOST_PACKS)
    tokens, samples = {source.name: 0 for source in sources}, 0
    for _ in range(packs):
        planned, _ = lane.next_pack()
        samples += len(planned)
        for sample in planned:
            tokens[sources[sample.source].name] += sample.length
    return Fill(length, packs, samples, sum(mixture.num_left_out), tokens)


def as_text(held: Sequence[Holdings], fills: Sequence[Fill]) -> str:
    """Samples, tokens, visual tokens, domains and a histogram of lengths by source; then how they pack together."""
    return "\n\n".join([*map(_page, held), _packing_page(fills)])


def _page(held: Holdings) -> str:
    lines = [
        f"{held.name}",
        f"  samples        {held.total.samples:>14,}",
        f"  tokens         {held.total.tokens:>14,}",
        f"  visual tokens  {held.total.visual:>14,}",
        "  domains",
    ]
    lines += [f"    {name:<24} {amount.samples:>10,}" for name, amount in held.domains.items()]
    lines += ["  tokens per sample"]
    most = max(held.histogram.values(), default=0)
    for power, count in held.histogram.items():
        bar = "#" * int(np.ceil(_BAR * count / most))
        lines.append(f"    {2**power:>9,} - {2 ** (power + 1) - 1:>9,} {count:>10,} {bar}".rstrip())
    if held.num_unusable:
        lines.append(f"  cannot be used {held.num_unusable:>14,}")
        lines += [f"    {key}: {reason}" for key, reason in held.unusable]
    lines += [f"  damaged: {line}" for line in held.damage]
    return "\n".join(lines)


def _packing_page(fills: Sequence[Fill]) -> str:
    lines = ["packing         fill   samples a pack   left out"]
    for fill in fills:
        if fill.problem is not None:
            lines.append(f"  {fill.sequence_length:>9,}  no packs: {fill.problem}")
            continue
        per_pack = fill.samples / fill.packs
        lines.append(f"  {fill.sequence_length:>9,}  {fill.share:>7.2%} {per_pack:>16,.1f} {fill.left_out:>10,}")
    return "\n".join(lines)
