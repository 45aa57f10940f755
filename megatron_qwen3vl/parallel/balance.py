"""Which rank computes what: the packs of a global batch, the images of a micro-batch. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

EVEN = 1.001  # the busiest rank over the mean, from where on swapping packs is not worth its time


def assign_packs(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Give every rank the same number of packs, with their costs as even as longest first and swaps make them.

    The dearest pack left goes to the rank with the least cost that still has room (LPT: Graham 1969, with a cap on the
    count); ties go to the lower rank. Then the busiest rank swaps packs with others while that helps it. The answer is
    a pure function. Each rank's indices are ascending. Raises ValueError when the packs do not divide among the ranks.
    """
    if num_ranks < 1 or len(costs) % num_ranks:
        raise ValueError(f"{len(costs)} packs cannot be shared equally by {num_ranks} ranks")
    room = len(costs) // num_ranks
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    open_ranks = [(0.0, rank) for rank in range(num_ranks)]
    for pack in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        total, rank = heapq.heappop(open_ranks)
        ranks[rank].append(pack)
        if len(ranks[rank]) < room:
            heapq.heappush(open_ranks, (total + costs[pack], rank))
    return _swap(ranks, costs)


def _swap(ranks: Sequence[Sequence[int]], costs: Sequence[float]) -> list[list[int]]:
    """Swap a pack of the busiest rank for another rank's as long as the busier of the two then has less."""
    cost, rank_of = np.array(costs, np.float64), np.empty(len(costs), np.int64)
    for rank, packs in enumerate(ranks):
        rank_of[packs] = rank
    loads = np.bincount(rank_of, weights=cost, minlength=len(ranks))
    while loads.max() > EVEN * loads.mean():
        busiest = int(loads.argmax())
        own = np.flatnonzero(rank_of == busiest)
        moved = cost[own, None] - cost  # from the busiest rank, by swapping own pack i for pack j
        then = np.maximum(loads[busiest] - moved, loads[rank_of] + moved)
        then[:, own] = np.inf
        mine, other = np.unravel_index(int(then.argmin()), then.shape)
        if not then[mine, other] < loads[busiest] * (1 - 1e-9):
            break
        loads[rank_of[other]] += moved[mine, other]
        loads[busiest] -= moved[mine, other]
        rank_of[own[mine]], rank_of[other] = rank_of[other], busiest
    return [np.flatnonzero(rank_of == rank).tolist() for rank in range(len(ranks))]


def share_packs(language: Sequence[float], vision: Sequence[float], num_ranks: int, vision_dp: int) -> list[list[int]]:
    """As ``assign_packs`` where ``vision_dp`` neighbouring ranks share the ViT's work of their packs.

    Packs go to neighbourhoods by all they cost, and inside one by the language model's cost alone: whoever has the
    pack, all neighbours encode its images.
    """
    whole = [sum(costs) for costs in zip(language, vision, strict=True)]
    return [
        sorted(block[place] for place in places)
        for block in assign_packs(whole, num_ranks // vision_dp)
        for places in assign_packs([language[pack] for pack in block], vision_dp)
    ]


def assign_images(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Images to ranks by cost, longest first (LPT: Graham 1969); any rank may get none.

    Ties go to the lower rank and the lower image, so the answer is a pure function. Each rank's indices are ascending.
    """
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [(0.0, rank) for rank in range(num_ranks)]
    for image in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + costs[image], rank))
        ranks[rank].append(image)
    return [sorted(images) for images in ranks]
