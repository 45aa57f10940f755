"""Losses of chosen samples, each read once, without gradients: what ``evaluate`` and the validation share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from megatron_qwen3vl.batch import Pack, collate
from megatron_qwen3vl.data.loader import to_pack
from megatron_qwen3vl.data.source import Source
from megatron_qwen3vl.parallel.device import Device
from megatron_qwen3vl.parallel.groups import Groups, all_reduce_sum, gather_objects
from megatron_qwen3vl.train.feed import Channel, Parcel
from megatron_qwen3vl.train.forward import run_schedule


@dataclass(frozen=True)
class SampleLoss:
    key: str
    domain: str
    loss_tokens: int
    loss_sum: float
    failure: str | None


def measure(
    chunks: Sequence[torch.nn.Module],
    chosen: Sequence[tuple[Source, int]],
    length: int,
    pad_id: int,
    channel: Channel,
    groups: Groups,
    device: Device,
) -> list[SampleLoss]:
    """Losses in the order of ``chosen``, the same list on every rank. Only readers (train/feed.py) need ``chosen``.

    Samples go into packs of ``length`` positions one after another; a longer sample gets a pack of its own. Every
    data-parallel rank computes every num_ranks-th pack and takes part in the others' collectives with padding.
    """
    multiple = groups.tp_size * groups.cp_size * 2
    plan: list[list[int]] = []

    def count_rounds() -> Parcel[int]:
        plan.extend(_groups_of(chosen, length))
        # readers whose indexes differ would compute another number of packs, or packs of other sizes
        digest = hash(tuple((i, _tokens(chosen[i]), part[0]) for part in plan for i in part)) & 2**63 - 1
        return Parcel((), -(-len(plan) // groups.dp_size), digest=digest)

    def read(first: int) -> Parcel[Sequence[int]]:
        together = plan[first : first + groups.dp_size]
        size = max(sum(_tokens(chosen[i]) for i in part) for part in together)
        size = -(-max(size, length) // multiple) * multiple
        own = together[groups.dp_rank] if groups.dp_rank < len(together) else []
        samples = [chosen[i][0].read(chosen[i][1], pixels=True) for i in own]
        return Parcel((to_pack(0, samples, size, pad_id),), own)

    rounds = channel.take(channel.share(count_rounds)).facts
    results: dict[int, SampleLoss] = {}
    with torch.no_grad(), _evaluating(chunks):
        for number in range(rounds):
            parcel = channel.take(channel.share(partial(read, number * groups.dp_size)))
            results.update(_losses(chunks, parcel.facts, parcel.packs[0], groups, device))
    merged: dict[int, SampleLoss] = {}
    for part in gather_objects(results):
        merged.update(part)
    return [merged[i] for i in sorted(merged)]


def _tokens(choice: tuple[Source, int]) -> int:
    source, index = choice
    return int(source.lengths[index])


def _groups_of(chosen: Sequence[tuple[Source, int]], length: int) -> Iterator[list[int]]:
    """Positions of ``chosen`` that share a pack; samples the plan cannot use are left out."""
    part: list[int] = []
    filled = 0
    for position, choice in enumerate(chosen):
        tokens = _tokens(choice)
        if tokens <= 0:
            continue
        if part and filled + tokens > length:
            yield part
            part, filled = [], 0
        part.append(position)
        filled += tokens
    if part:
        yield part


def _losses(
    chunks: Sequence[torch.nn.Module],
    own: Sequence[int],
    pack: Pack,
    groups: Groups,
    device: Device,
) -> dict[int, SampleLoss]:
    report = run_schedule(chunks, [collate([pack], 0.0, device.device)], 1.0, groups.dp_size, forward_only=True)
    if not groups.is_last_stage:
        return {}
    sums = report.losses[0].document_losses
    all_reduce_sum(sums, groups.cp)
    return {
        position: SampleLoss(document.key, document.domain, document.num_labels, loss_sum, document.failure)
        for position, document, loss_sum in zip(own, pack.documents, sums.tolist(), strict=True)
    }


class _evaluating:
    """Modules in evaluation mode for the time of a ``with``."""

    def __init__(self, chunks: Sequence[torch.nn.Module]) -> None:
        self._chunks = chunks

    def __enter__(self) -> None:
        for chunk in self._chunks:
            chunk.eval()

    def __exit__(self, *error: object) -> None:
        for chunk in self._chunks:
            chunk.train()


def summarise(results: Sequence[SampleLoss], exponent: float) -> dict:
    """The reweighted loss (docs/loss.md) and the plain mean over labels, of all and per domain."""
    domains = sorted({result.domain for result in results if result.failure is None})
    return {
        **_mean(results, exponent),
        "domains": {name: _mean([r for r in results if r.domain == name], exponent) for name in domains},
    }


def _mean(results: Sequence[SampleLoss], exponent: float) -> dict:
    counted = [r for r in results if r.loss_tokens > 0]
    labels = sum(r.loss_tokens for r in counted)
    weighted = sum(r.loss_sum * r.loss_tokens ** (-exponent) for r in counted)
    total = sum(r.loss_tokens ** (1.0 - exponent) for r in counted)
    return {
        "loss": weighted / total if total else None,
        "token_loss": sum(r.loss_sum for r in counted) / labels if labels else None,
        "samples": sum(r.failure is None for r in results),
        "loss_tokens": labels,
    }
