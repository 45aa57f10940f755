"""The reweighted loss (docs/loss.md).

    L = sum_i ( n_i^(-e) * sum_t l_it )  /  sum_i n_i^(1 - e)

over all samples i of the *global* batch; n_i counts the labels of sample i, l_it are its token losses and e is
``loss.exponent``: 0 per token, 1/2 square root, 1 per sample. The denominator, the normaliser, is known before the
forward, so that every micro-batch can be divided by it and the sum over micro-batches and ranks is L itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from megatron_qwen3vl.batch import IGNORE, Batch


def normaliser(num_labels: Iterable[int], exponent: float) -> float:
    """sum_i n_i^(1 - e) over the samples that have labels; a Python float, never rounded to a count."""
    return sum(float(n) ** (1.0 - exponent) for n in num_labels if n > 0)


@dataclass(frozen=True)
class MicroBatchLoss:
    """What one micro-batch reports of itself, on the last pipeline rank.

    ``document_losses`` float64 [S]: the sum of the token losses of each document of the batch (of this rank's tokens).
    """

    batch: Batch
    document_losses: torch.Tensor


def weigh(token_losses: torch.Tensor, batch: Batch, scale: float) -> tuple[torch.Tensor, MicroBatchLoss]:
    """Token losses [N] at the label positions of ``batch`` -> (scaled scalar to differentiate, report).

    ``scale`` holds 1 / normaliser and whatever undoes the averaging of the schedule.
    """
    at_labels = batch.labels != IGNORE
    loss = (token_losses * batch.loss_weights[at_labels]).sum() * scale
    sums = torch.zeros(len(batch.documents) + 1, dtype=torch.float64, device=token_losses.device)
    sums.index_add_(0, batch.document_index[at_labels], token_losses.detach().double())
    return loss, MicroBatchLoss(batch=batch, document_losses=sums[:-1])
