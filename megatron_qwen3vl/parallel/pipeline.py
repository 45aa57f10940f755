"""Which language layers lie on which part of the pipeline. Pure integers.

A *part* is one of the pp x vpp pieces into which the layers are cut, in the model's order; part k lies on pipeline rank
k % pp. ViT and mergers stand before the first part's layers, the output head behind the last part's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PipelineShape:
    """What is divided among how many parts; ``num_levels`` DeepStack levels need as many layers on the first part."""

    num_layers: int
    num_levels: int
    pp: int
    vpp: int

    @property
    def num_parts(self) -> int:
        return self.pp * self.vpp

    @property
    def least(self) -> list[int]:
        """The fewest layers of each part."""
        return [max(self.num_levels, 1), *[1] * (self.num_parts - 1)]

    @property
    def is_possible(self) -> bool:
        return sum(self.least) <= self.num_layers


@dataclass(frozen=True)
class PipelineCosts:
    """Work of the same tokens in what is divided: before the layers, in one of them (above 0), and behind them."""

    first: int
    layer: int
    last: int


EVEN = PipelineCosts(first=0, layer=1, last=0)


def choose_split(shape: PipelineShape, costs: PipelineCosts) -> tuple[int, ...]:
    """Layers of each part: the dearest pipeline rank as cheap as possible, then the dearest part.

    Layers go one at a time to the place that is cheapest with one more; since all cost the same, no other order ends
    lower. Of equal places the later gets it: early pipeline ranks keep more micro-batches in memory. Raises ValueError
    where ``shape`` is not possible.
    """
    if not shape.is_possible:
        raise ValueError(f"{shape.num_layers} layers cannot fill {shape.num_parts} parts")
    before = [0] * shape.num_parts
    before[0] += costs.first
    before[-1] += costs.last
    parts = [extra + least * costs.layer for extra, least in zip(before, shape.least, strict=True)]
    ranks = [sum(parts[rank :: shape.pp]) for rank in range(shape.pp)]
    to_place = shape.num_layers - sum(shape.least)

    filled = list(ranks)
    for _ in range(to_place):
        filled[_cheapest(filled, range(shape.pp))] += costs.layer
    limit = max(filled)

    layers = shape.least
    for _ in range(to_place):
        part = _cheapest(parts, [k for k in range(shape.num_parts) if ranks[k % shape.pp] + costs.layer <= limit])
        layers[part] += 1
        parts[part] += costs.layer
        ranks[part % shape.pp] += costs.layer
    return tuple(layers)


def _cheapest(totals: Sequence[int], among: Sequence[int]) -> int:
    return min(among, key=lambda index: (totals[index], -index))


def split_problems(shape: PipelineShape, given: Sequence[int] | None, sizes: str, key: str, own: str) -> Iterator[str]:
    """Why no split is possible, or why not the ``given`` one: one line each.

    ``sizes`` names pp as its key says it (``parallel.pp=4``), ``key`` that of ``given``; ``own`` is the key to set.
    """
    if shape.num_parts > 1 and not shape.is_possible:
        most = max(shape.num_layers - shape.least[0] + 1, 1)
        yield (
            f"{sizes}: pp x vpp = {shape.pp} x {shape.vpp} = {shape.num_parts} parts, but {shape.num_layers} layers "
            f"with the {shape.num_levels} DeepStack levels in the first part fill at most {most}; lower pp or vpp"
        )
        return
    if given is None:
        return
    told = f"{key}={show_split(given)}"
    instead = f"use for example {own}={show_split(choose_split(shape, EVEN))}"
    if len(given) != shape.num_parts:
        parts = f"pp x vpp = {shape.pp} x {shape.vpp} = {shape.num_parts} parts"
        yield f"{told}: {len(given)} counts for {parts}; {instead}"
        return
    if min(given) < 1:
        yield f"{told}: every part needs at least one layer; {instead}"
    elif given[0] < shape.num_levels:
        yield (
            f"{told}: the first part has {given[0]} layers, but the {shape.num_levels} DeepStack levels must lie in "
            f"it; {instead}"
        )
    if sum(given) != shape.num_layers:
        yield f"{told}: sums to {sum(given)}, the model has num_hidden_layers {shape.num_layers}; {instead}"


def show_split(layers: Sequence[int]) -> str:
    """As the command line takes it: ``[10,14]``."""
    return f"[{','.join(map(str, layers))}]"
