"""What one rank works on of a micro-batch: its tokens, the images it encodes, and the ways between them.

    batch -> cut_batch -> own tokens (all that has a value per token) -> images.share_images -> Work

Shapes: R context-parallel ranks, T tokens of the whole batch, V visual tokens of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from megatron_qwen3vl.batch import Batch
from megatron_qwen3vl.parallel.sequence import Piece, Routes, cut_documents, token_index


@dataclass(frozen=True)
class Cut:
    """Where a context-parallel rank's tokens lie in the whole batch.

    ``order`` int64 [T], on the device: the places in the whole batch of all ranks' tokens, rank after rank.
    """

    order: torch.Tensor
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Work:
    """What a rank does of a micro-batch.

    ``batch`` holds the own tokens, and in ``grids`` and ``patches`` the images that are encoded here, which may be
    others than those whose positions are here. ``cut`` is None where the own tokens are all, ``routes`` where features
    stay here. ``vision_costs``: what each rank that shares these images computes in the ViT; empty on later pipeline
    ranks.
    """

    batch: Batch
    cut: Cut | None = None
    routes: Routes | None = None
    vision_costs: tuple[float, ...] = ()


def cut_batch(batch: Batch, rank: int, num_ranks: int) -> tuple[Batch, Cut | None, np.ndarray]:
    """(batch of own tokens, cut, holder) of context-parallel rank ``rank``.

    Per-token tensors hold the own tokens [T / R], ``visual_index`` counts in them; ``cu_seqlens``, ``documents`` and
    the images stay the whole batch's. ``holder`` int64 [V]: the rank that has each visual token's position. All of it
    is known to every rank from the batch's integers alone.
    """
    if num_ranks == 1:
        return batch, None, np.zeros(len(batch.visual_index), np.int64)
    pieces = cut_documents(batch.cu_seqlens.diff().tolist(), num_ranks)
    by_rank = [token_index(own) for own in pieces]
    order = np.concatenate(by_rank)
    place = np.empty_like(order)  # of each token in that order
    place[order] = np.arange(len(order))
    per_rank = len(order) // num_ranks
    visual_place = place[batch.visual_index.cpu().numpy()]
    holder = visual_place // per_rank

    device = batch.input_ids.device
    own = torch.from_numpy(by_rank[rank]).to(device)
    own_visual = torch.from_numpy(visual_place[holder == rank] - rank * per_rank)
    own_batch = replace(
        batch,
        input_ids=batch.input_ids[own],
        labels=batch.labels[own],
        loss_weights=batch.loss_weights[own],
        positions=batch.positions[:, own],
        padding_mask=batch.padding_mask[own],
        document_index=batch.document_index[own],
        visual_index=own_visual.to(device),
    )
    return own_batch, Cut(torch.from_numpy(order).to(device), tuple(pieces[rank])), holder
