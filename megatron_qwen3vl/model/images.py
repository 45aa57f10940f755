"""The images of a micro-batch, shared out over neighbouring data-parallel ranks and their context-parallel ranks.

    exchange        what images the neighbours hold, and where their positions are: integers, once a step
    assign          each image or frame group to a rank, longest first by the ViT's cost (balance.assign_images)
    send_patches    uint8 patches to the ranks that encode them, before the first kernel of the step
    send_features   features and DeepStack levels to the ranks that hold their positions; its backward is the way back

A group has R = N x C ranks, of N data-parallel neighbours with C context-parallel ranks each; rank n x C + c of it is
context-parallel rank c of neighbour n. All C hold all patches of their neighbour's batch.

Shapes: I images or frame groups of the group's micro-batch, neighbour after neighbour; V their visual tokens, D width,
L DeepStack levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import tensor_parallel

from megatron_qwen3vl.batch import Batch
from megatron_qwen3vl.config.schema import VisionConfig
from megatron_qwen3vl.model.share import Cut, Work
from megatron_qwen3vl.parallel.balance import assign_images
from megatron_qwen3vl.parallel.groups import gather_integers
from megatron_qwen3vl.parallel.sequence import Routes, route_features


@dataclass(frozen=True)
class Pictures:
    """What neighbours know of each other's micro-batch.

    ``grids`` int64 [I, 3] of the neighbour's images; ``holder`` int64 [V]: which of its context-parallel ranks has the
    position of each visual token.
    """

    grids: np.ndarray
    holder: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Who encodes what, the same on all ranks of the group.

    ``grids`` int64 [I, 3]. By rank in the group: ``carrier`` [I] sends an image's patches, ``maker`` [I] encodes it,
    ``holder`` [V] has a visual token's position. ``costs`` [R] are the ViT's.
    """

    grids: np.ndarray
    carrier: np.ndarray
    maker: np.ndarray
    holder: np.ndarray
    costs: tuple[float, ...]

    @property
    def patch_counts(self) -> np.ndarray:
        return self.grids.prod(axis=1)


def image_cost(vision: VisionConfig, num_patches: int) -> float:
    """The ViT's multiply-adds per layer for one image or frame group, mergers and patch embedding left out."""
    width, inner = vision.hidden_size, vision.intermediate_size
    return float(num_patches * (4 * width**2 + 2 * width * inner + 2 * num_patches * width))


def share_images(
    cut: Sequence[tuple[Batch, Cut | None, np.ndarray]], vision: VisionConfig, group: dist.ProcessGroup, num_cp: int
) -> list[Work]:
    """The work of this rank in every micro-batch of a step, from what ``cut_batch`` gives of each.

    Collective over ``group``, whose ranks must have as many micro-batches each.
    """
    own = [Pictures(batch.grids.numpy(), holder) for batch, _, holder in cut]
    known = exchange(own, group, num_cp, cut[0][0].input_ids.device)
    work = []
    done = np.zeros(group.size())
    for (batch, where, _), pictures in zip(cut, known, strict=True):
        plan = assign(pictures, vision, num_cp, done)
        done += plan.costs
        own_batch = replace(
            batch,
            grids=torch.from_numpy(plan.grids[plan.maker == group.rank()]),
            patches=send_patches(batch.patches, plan, group, num_cp, vision.patch_values),
        )
        maker = np.repeat(plan.maker, plan.patch_counts // vision.spatial_merge_size**2)
        stay = np.array_equal(maker, plan.holder)  # as where there is no picture, or one rank
        routes = None if stay else route_features(maker, plan.holder, group.rank(), group.size())
        work.append(Work(own_batch, where, routes, plan.costs))
    return work


def exchange(
    own: Sequence[Pictures], group: dist.ProcessGroup, num_cp: int, device: torch.device
) -> list[list[Pictures]]:
    """For each micro-batch what every neighbour has in it. One rank speaks for its neighbour; alone, none asks."""
    if group.size() == num_cp:
        return [[pictures] for pictures in own]
    words = encode(own) if group.rank() % num_cp == 0 else np.zeros(0, np.int64)
    spoken = gather_integers(words, group, device)[::num_cp]
    return [list(pictures) for pictures in zip(*map(decode, spoken), strict=True)]


def encode(own: Sequence[Pictures]) -> np.ndarray:
    """int64: per micro-batch the number of images, the number of runs of equal holders, the grids, the runs."""
    parts = []
    for pictures in own:
        holder = pictures.holder
        starts = np.flatnonzero(np.diff(holder, prepend=-1))
        runs = np.stack([holder[starts], np.diff(starts, append=len(holder))])
        parts += [np.array([len(pictures.grids), len(starts)]), pictures.grids.ravel(), runs.ravel()]
    return np.concatenate(parts).astype(np.int64)


def decode(words: np.ndarray) -> list[Pictures]:
    """What ``encode`` was given."""
    found = []
    while len(words):
        images, runs = words[:2]
        grids, holders, lengths, words = np.split(words[2:], np.cumsum([3 * images, runs, runs]))
        found.append(Pictures(grids.reshape(-1, 3), np.repeat(holders, lengths)))
    return found


def assign(pictures: Sequence[Pictures], vision: VisionConfig, num_cp: int, done: np.ndarray) -> Plan:
    """Longest first over all ranks of the group, a pure function of what every neighbour has.

    ``done`` float64 [R]: what each rank encodes in the step's micro-batches before; who did least gets the dearest
    share, so that shares which cannot be even in a micro-batch are so over the step.
    """
    ranks = len(pictures) * num_cp
    grids = np.concatenate([own.grids for own in pictures])
    costs = [image_cost(vision, count) for count in grids.prod(axis=1).tolist()]
    shares = sorted(assign_images(costs, ranks), key=lambda images: sum(costs[image] for image in images))
    shares = [shares[place] for place in np.argsort(np.argsort(-done, kind="stable"))]
    maker = np.empty(len(grids), np.int64)
    for rank, images in enumerate(shares):
        maker[images] = rank
    neighbour = np.repeat(np.arange(len(pictures)), [len(own.grids) for own in pictures])
    return Plan(
        grids=grids,
        carrier=neighbour * num_cp + maker % num_cp,  # the maker itself where it has the patches already
        maker=maker,
        holder=np.concatenate([number * num_cp + own.holder for number, own in enumerate(pictures)]),
        costs=tuple(sum(costs[image] for image in images) for images in shares),
    )


def send_patches(
    patches: torch.Tensor, plan: Plan, group: dist.ProcessGroup, num_cp: int, patch_values: int
) -> torch.Tensor:
    """uint8 patches of the own neighbour's batch -> those of the images encoded here, in the plan's order.

    One all-to-all, without a gradient; nothing is sent where every image stays with its neighbour.
    """
    ranks, rank = group.size(), group.rank()
    counts = plan.patch_counts
    mine = np.flatnonzero(plan.carrier // num_cp == rank // num_cp)  # the images whose patches are here
    parts = patches.split(counts[mine].tolist())
    leaving = mine[plan.carrier[mine] == rank]
    leaving = leaving[np.argsort(plan.maker[leaving], kind="stable")]
    stay = np.array_equal(plan.carrier, plan.maker)
    if stay and len(leaving) == len(mine):
        return patches
    outgoing = torch.cat([patches.new_zeros(0, patch_values), *(parts[image - mine[0]] for image in leaving)])
    if stay:
        return outgoing
    # From one neighbour after the other: images arrive in the plan's order.
    arriving = np.flatnonzero(plan.maker == rank)
    sent = np.bincount(plan.maker[leaving], weights=counts[leaving], minlength=ranks).astype(int).tolist()
    received = np.bincount(plan.carrier[arriving], weights=counts[arriving], minlength=ranks).astype(int).tolist()
    incoming = outgoing.new_empty(sum(received), patch_values)
    dist.all_to_all_single(incoming, outgoing, received, sent, group=group)
    return incoming


def send_features(
    features: torch.Tensor, levels: torch.Tensor, routes: Routes, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [V, D] and levels [L, V, D] of the images encoded here -> of the positions held here.

    One all-to-all, whose backward is the way back.
    """
    rows = torch.cat([features[None], levels]).transpose(0, 1)
    leaving = torch.from_numpy(routes.leaving).to(rows.device)
    arriving = torch.from_numpy(routes.arriving).to(rows.device)
    arrived = tensor_parallel.all_to_all(group, rows[leaving], list(routes.received), list(routes.sent))[arriving]
    return arrived[:, 0], arrived[:, 1:].transpose(0, 1)
