"""What one context-parallel rank works on: its tokens of a batch, its share of the images, the ways between them.

    whole batch -> split_batch -> own tokens (all that has a value per token), own images, Share (the other facts)

All of it is known to every rank from the batch's integers alone: nothing is exchanged but features and keys and values.

Shapes: R ranks, T tokens of the whole batch, V visual tokens of the whole batch, D width, L DeepStack levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import tensor_parallel

from megatron_qwen3vl.batch import Batch
from megatron_qwen3vl.parallel.balance import assign_images
from megatron_qwen3vl.parallel.sequence import Piece, Routes, cut_documents, route_features, token_index


@dataclass(frozen=True)
class Share:
    """The facts of a split that the own batch does not show.

    ``order`` int64 [T], on the device: the places in the whole batch of all ranks' tokens, rank after rank.
    ``vision_costs`` [R]: what each rank computes in the ViT, for the balance in the metrics.
    """

    order: torch.Tensor
    pieces: tuple[Piece, ...]
    routes: Routes
    vision_costs: tuple[float, ...]


def split_batch(
    batch: Batch, rank: int, num_ranks: int, merge_area: int, image_cost: Callable[[int], float]
) -> tuple[Batch, Share]:
    """(own batch, share) of rank ``rank``.

    Per-token tensors hold the own tokens [T / R], ``visual_index`` counts in them; ``grids`` and ``patches`` hold the
    images that are computed here, which are others than those whose positions are here. ``cu_seqlens`` and
    ``documents`` stay the whole batch's. ``image_cost`` is the ViT's cost of an image or frame group by its patches.
    """
    lengths = batch.cu_seqlens.diff().tolist()
    pieces = cut_documents(lengths, num_ranks)
    by_rank = [token_index(own) for own in pieces]
    order = np.concatenate(by_rank)
    place = np.empty_like(order)  # of each token in that order
    place[order] = np.arange(len(order))
    per_rank = len(order) // num_ranks
    visual_place = place[batch.visual_index.cpu().numpy()]
    holder = visual_place // per_rank

    patch_counts = batch.grids.prod(dim=1).tolist()
    costs = [image_cost(count) for count in patch_counts]
    images = assign_images(costs, num_ranks)
    image_maker = np.empty(len(costs), np.int64)
    for maker_rank, made in enumerate(images):
        image_maker[made] = maker_rank
    maker = np.repeat(image_maker, np.array(patch_counts, np.int64) // merge_area)

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
        grids=batch.grids[images[rank]],
        patches=_own_patches(batch.patches, patch_counts, images[rank]),
    )
    share = Share(
        order=torch.from_numpy(order).to(device),
        pieces=tuple(pieces[rank]),
        routes=route_features(maker, holder, rank, num_ranks),
        vision_costs=tuple(sum(costs[image] for image in made) for made in images),
    )
    return own_batch, share


def _own_patches(patches: torch.Tensor, counts: Sequence[int], images: Sequence[int]) -> torch.Tensor:
    if not len(patches) or not images:  # later pipeline ranks have no pixels
        return patches[:0]
    parts = patches.split(list(counts))
    return torch.cat([parts[image] for image in images])


def send_features(
    features: torch.Tensor, levels: torch.Tensor, share: Share, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [V, D] and levels [L, V, D] of the images computed here -> of the positions held here.

    One all-to-all, whose backward is the way back; nothing where the whole batch holds no picture.
    """
    routes = share.routes
    if not any(share.vision_costs):
        return features, levels
    rows = torch.cat([features[None], levels]).transpose(0, 1)
    leaving = torch.from_numpy(routes.leaving).to(rows.device)
    arriving = torch.from_numpy(routes.arriving).to(rows.device)
    arrived = tensor_parallel.all_to_all(group, rows[leaving], list(routes.received), list(routes.sent))[arriving]
    return arrived[:, 0], arrived[:, 1:].transpose(0, 1)
