"""The figures of one step, summed over all ranks in two reductions: what is known before the forward (counts, the
normaliser) and what the forward gives (losses per domain, the balance of the ViT's work).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_qwen3vl.batch import Document, Pack
from megatron_qwen3vl.parallel.groups import Groups, all_reduce_sum
from megatron_qwen3vl.train.forward import Report
from megatron_qwen3vl.train.loss import normaliser


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


@dataclass(frozen=True)
class Losses:
    """``loss`` is the reweighted one (docs/loss.md), ``token_loss`` the plain mean over labels; both per domain too.

    ``vision_balance``: the busiest rank's multiply-adds in the ViT over the mean of all data and context-parallel
    ranks, where each micro-batch waits for the busiest of those that share its images; None without a picture.
    ``stop``: some rank has been asked to. ``saved``: every rank has done its part of the save under way.
    """

    loss: float
    token_loss: float
    domains: dict[str, dict[str, float]]
    vision_balance: float | None
    stop: bool
    saved: bool


def gather_losses(
    report: Report,
    domains: Sequence[str],
    exponent: float,
    global_normaliser: float,
    stop_requested: bool,
    has_saved: bool,
    groups: Groups,
    device: torch.device,
) -> Losses:
    """Per domain: weighted sum, its normaliser, token-loss sum, labels. One reduction over the whole world.

    Only one rank of each tensor-parallel group on the last pipeline rank contributes, so nothing is counted twice;
    context-parallel ranks contribute the sums of their own tokens (and one of them the counts). One rank of each group
    that shares images contributes the ViT's work.
    """
    table = torch.zeros(len(domains) + 1, 4, dtype=torch.float64)
    if groups.is_last_stage and groups.tp_rank == 0:
        for micro_batch in report.losses:
            sums = micro_batch.document_losses.tolist()
            for document, loss_sum in zip(micro_batch.batch.documents, sums, strict=True):
                _add(table[domains.index(document.domain)], document, loss_sum, exponent, groups.cp_rank == 0)
    table[-1] = torch.tensor([stop_requested, not has_saved, 0, 0])
    total = torch.cat([table.flatten(), _vision_work(report, groups)]).to(device)
    summed = all_reduce_sum(total).cpu()
    rows = summed[: table.numel()].view_as(table).tolist()
    *busiest, vision_work = summed[table.numel() :].tolist()
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
        vision_balance=max(busiest) * groups.dp_size * groups.cp_size / vision_work if vision_work else None,
        stop=rows[-1][0] > 0,
        saved=rows[-1][1] == 0,
    )


def _vision_work(report: Report, groups: Groups) -> torch.Tensor:
    """float64: of each group that shares images the busiest ranks' work over all micro-batches; last, everybody's."""
    neighbours = groups.layout.vision_dp
    work = torch.zeros(groups.dp_size // neighbours + 1, dtype=torch.float64)
    if groups.is_first_stage and groups.tp_rank == 0 and groups.vision.rank() == 0:
        work[groups.dp_rank // neighbours] = sum(max(costs) for costs in report.vision_costs)
        work[-1] = sum(sum(costs) for costs in report.vision_costs)
    return work


def _add(row: torch.Tensor, document: Document, loss_sum: float, exponent: float, counts: bool) -> None:
    if document.num_labels == 0:
        return
    weight = document.num_labels ** (-exponent)
    row[0] += loss_sum * weight
    row[2] += loss_sum
    if counts:
        row[1] += document.num_labels ** (1.0 - exponent)
        row[3] += document.num_labels
