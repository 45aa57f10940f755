"""The figures of one step, summed over all ranks in two reductions: what is known before the forward (counts, the
normaliser) and what the forward gives (losses per domain).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_qwen3vl.batch import Document, Pack
from megatron_qwen3vl.config.schema import VisionConfig
from megatron_qwen3vl.model.qwen3vl import image_cost
from megatron_qwen3vl.parallel.balance import assign_images
from megatron_qwen3vl.parallel.groups import Groups, all_reduce_sum
from megatron_qwen3vl.train.loss import MicroBatchLoss, normaliser


@dataclass(frozen=True)
class Counts:
    """Of the global batch. ``tokens`` are without padding and with visual tokens."""

    normaliser: float
    samples: int
    failed: int
    tokens: int
    padding: int
    loss_tokens: int
    patches: int
    images: int


def count(packs: Sequence[Pack], exponent: float, groups: Groups, device: torch.device) -> Counts:
    """Sum over data-parallel ranks; ranks of one model-parallel group hold the same packs and get the same answer."""
    documents = [document for pack in packs for document in pack.documents]
    padding = sum(pack.num_padding for pack in packs)
    local = [
        normaliser((d.num_labels for d in documents), exponent),
        len(documents),
        sum(d.failure is not None for d in documents),
        sum(len(pack.input_ids) for pack in packs) - padding,
        padding,
        sum(d.num_labels for d in documents),
        sum(int(pack.grids.prod(axis=1).sum()) for pack in packs),
        sum(len(pack.grids) for pack in packs),
    ]
    total = torch.tensor(local, dtype=torch.float64, device=device)
    all_reduce_sum(total, groups.dp)
    values = total.tolist()
    return Counts(values[0], *(int(value) for value in values[1:]))


def vision_balance(
    packs: Sequence[Pack], micro_batch_size: int, vision: VisionConfig, groups: Groups, device: torch.device
) -> float | None:
    """The ViT's multiply-adds of the busiest rank over the mean of all data and context-parallel ranks; None without a
    picture. 1 is perfect.
    """
    loads = torch.zeros(groups.dp_size, groups.cp_size, dtype=torch.float64)
    for start in range(0, len(packs), micro_batch_size):
        grids = [grid for pack in packs[start : start + micro_batch_size] for grid in pack.grids]
        costs = [image_cost(vision, int(grid.prod())) for grid in grids]
        for rank, images in enumerate(assign_images(costs, groups.cp_size)):
            loads[groups.dp_rank, rank] += sum(costs[image] for image in images)
    total = loads.to(device)
    all_reduce_sum(total, groups.dp)
    mean = float(total.mean())
    return float(total.max()) / mean if mean else None


@dataclass(frozen=True)
class Losses:
    """``loss`` is the reweighted one (docs/loss.md), ``token_loss`` the plain mean over labels; both per domain too."""

    loss: float
    token_loss: float
    domains: dict[str, dict[str, float]]
    stop: bool


def gather_losses(
    reports: Sequence[MicroBatchLoss],
    domains: Sequence[str],
    exponent: float,
    global_normaliser: float,
    stop_requested: bool,
    groups: Groups,
    device: torch.device,
) -> Losses:
    """Per domain: weighted sum, its normaliser, token-loss sum, labels. One reduction over the whole world.

    Only one rank of each tensor-parallel group on the last pipeline rank contributes, so nothing is counted twice;
    context-parallel ranks contribute the sums of their own tokens (and one of them the counts).
    """
    table = torch.zeros(len(domains) + 1, 4, dtype=torch.float64)
    if groups.is_last_stage and groups.tp_rank == 0:
        for report in reports:
            sums = report.document_losses.tolist()
            for document, loss_sum in zip(report.batch.documents, sums, strict=True):
                _add(table[domains.index(document.domain)], document, loss_sum, exponent, groups.cp_rank == 0)
    table[-1, 0] = float(stop_requested)
    total = table.to(device)
    all_reduce_sum(total)
    rows = total.tolist()
    per_domain = {
        name: {"loss": weighted / norm, "token_loss": plain / labels, "loss_tokens": int(labels)}
        for name, (weighted, norm, plain, labels) in zip(domains, rows, strict=False)
        if labels
    }
    labels = sum(row[3] for row in rows[:-1])
    return Losses(
        loss=sum(row[0] for row in rows[:-1]) / global_normaliser,
        token_loss=sum(row[2] for row in rows[:-1]) / max(labels, 1.0),
        domains=per_domain,
        stop=rows[-1][0] > 0,
    )


def _add(row: torch.Tensor, document: Document, loss_sum: float, exponent: float, counts: bool) -> None:
    if document.num_labels == 0:
        return
    weight = document.num_labels ** (-exponent)
    row[0] += loss_sum * weight
    row[2] += loss_sum
    if counts:
        row[1] += document.num_labels ** (1.0 - exponent)
        row[3] += document.num_labels
