"""The only place that knows megatron-core's calling convention.

A schedule multiplies the loss by the context-parallel size, divides it by the number of micro-batches, and
megatron's DDP averages gradients over data and context parallel ranks. Our loss is a sum over everything, so
``sum_scale`` undoes exactly these: num_microbatches x data-parallel size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_model_config, unwrap_model

from megatron_qwen3vl.batch import Batch
from megatron_qwen3vl.model.share import Work
from megatron_qwen3vl.train.loss import MicroBatchLoss, weigh


@dataclass(frozen=True)
class Report:
    """What a step's micro-batches report of themselves.

    ``losses`` on the last pipeline rank, elsewhere empty. ``vision_costs`` on the first: per micro-batch what each rank
    that shares its images computed in the ViT.
    """

    losses: tuple[MicroBatchLoss, ...] = ()
    vision_costs: tuple[tuple[float, ...], ...] = ()


def prepare_schedule(chunks: Sequence[DistributedDataParallel]) -> None:
    """Tell megatron how to close a step: reduce gradients over every axis, and divide by nothing (loss.py did).

    With overlap, also when: gradients in the backward of the last micro-batch, and the weights of each of several
    chunks ahead of its first forward.
    """
    config = get_model_config(chunks[0])
    config.finalize_model_grads_func = finalize_gradients
    config.grad_scale_func = None
    overlap = chunks[0].ddp_config
    if overlap.overlap_grad_reduce:
        config.no_sync_func = [chunk.no_sync for chunk in chunks] if len(chunks) > 1 else chunks[0].no_sync
    if overlap.align_param_gather:
        config.param_sync_func = [chunk.start_param_sync for chunk in chunks]


def complete_weights(chunks: Sequence[torch.nn.Module]) -> None:
    """Gather what other ranks have updated since the last forward, for a reader that is not a forward.

    Under overlap each rank otherwise holds its own part of the new weights and the rest of the old. Collective.
    """
    for chunk in chunks:
        if isinstance(chunk, DistributedDataParallel) and chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def finalize_gradients(
    chunks: list[torch.nn.Module],
    num_tokens: torch.Tensor | None = None,
    pg_collection: object | None = None,
    force_all_reduce: bool | None = False,
) -> None:
    """megatron's reduction without its division by an integer token count."""
    finalize_model_grads(chunks, None, pg_collection=pg_collection, force_all_reduce=force_all_reduce)


def run_schedule(
    chunks: Sequence[torch.nn.Module],
    batches: Sequence[Batch],
    normaliser: float,
    data_parallel_size: int,
    forward_only: bool = False,
) -> Report:
    """Forward (and backward) of this rank's micro-batches.

    All batches hold the same number of positions. Under context parallelism each rank works on, and reports, its own
    tokens of them.
    """
    # All are split before the first kernel is queued: a split waits for the device.
    own = unwrap_model(chunks[0]).split(batches)
    scale = len(batches) * data_parallel_size / normaliser

    def forward_step(source: Iterator[Work], model: torch.nn.Module) -> tuple[torch.Tensor, object]:
        work = next(source)
        return model(work.batch, work.cut, work.routes), partial(weigh, batch=work.batch, scale=scale)

    losses = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[iter(own) for _ in chunks],
        model=list(chunks),
        num_microbatches=len(batches),
        seq_length=len(batches[0].input_ids),
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return Report(losses=tuple(losses), vision_costs=tuple(work.vision_costs for work in own if work.vision_costs))
