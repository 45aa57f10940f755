"""Process groups. The only importer of megatron's parallel_state.

Several layouts may follow one another in one job: ``groups.stop()``, then ``start_groups`` with the next one.
"""

from __future__ import annotations

import datetime
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.parallel.device import Device, forget_loss_scale
from megatron_qwen3vl.parallel.layout import Layout
from megatron_qwen3vl.parallel.place import Place, read_place

TIMEOUT_MINUTES = 30
T = TypeVar("T")


@dataclass(frozen=True)
class Groups:
    """This process's place in the grid, and its group of each axis.

    ``model_parallel`` holds the ranks that work on the same packs (tp x cp x pp; megatron's group of that name leaves
    cp out), ``dp_cp`` those that hold the same parameters, ``vision`` those that share the images of a micro-batch:
    the context-parallel ranks of ``vision_dp`` data-parallel neighbours, neighbour after neighbour. On one pipeline
    rank both ``is_first_stage`` and ``is_last_stage`` hold.

    ``feed`` holds the ranks of ``model_parallel`` again and ``feed_pixels`` those of one pipeline rank of it, over gloo
    on every device: they are for memory of the host, and for one thread, which uses no other group.
    """

    layout: Layout
    device: Device
    rank: int
    world_size: int
    dp_rank: int
    dp_size: int
    tp_rank: int
    tp_size: int
    cp_rank: int
    cp_size: int
    pp_rank: int
    pp_size: int
    ep_rank: int
    etp_rank: int
    is_first_stage: bool
    is_last_stage: bool
    dp: dist.ProcessGroup
    dp_cp: dist.ProcessGroup
    tp: dist.ProcessGroup
    cp: dist.ProcessGroup
    pp: dist.ProcessGroup
    ep: dist.ProcessGroup
    vision: dist.ProcessGroup
    model_parallel: dist.ProcessGroup
    feed: dist.ProcessGroup
    feed_pixels: dist.ProcessGroup

    @property
    def is_reader(self) -> bool:
        """The one rank of a model-parallel group that reads its data; it is on the first pipeline rank."""
        return self.model_parallel.rank() == 0

    @property
    def is_writer(self) -> bool:
        """The one rank that writes what is written once."""
        return self.rank == 0

    def stop(self) -> None:
        """End this layout on all ranks, so that another may start; torch.distributed stays up."""
        dist.barrier()
        _destroy_groups()


def world_size() -> int:
    """Number of processes of this job, as the launcher says."""
    return read_place(os.environ).world_size


def is_first_rank() -> bool:
    """Whether this process is the one that speaks and writes for all."""
    return read_place(os.environ).rank == 0


def join(device: Device) -> None:
    """Meet the other processes of the job. Does nothing the second time."""
    place = read_place(os.environ)
    if device.type == "cuda":
        torch.cuda.set_device(place.local_rank)
    if not dist.is_initialized():
        _join(place, device)


def start_groups(layout: Layout, device: Device, seed: int = 0) -> Groups:
    """Join the other processes (the first time) and build the groups of ``layout``.

    Every random generator, megatron's tensor-parallel ones included, starts from ``seed``. Raises UserError when the
    launcher's variables are incomplete and RuntimeError when a layout has not been stopped.
    """
    place = read_place(os.environ)
    if parallel_state.model_parallel_is_initialized():
        raise RuntimeError("a layout is still up; call Groups.stop() before starting another")
    join(device)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
        context_parallel_size=layout.cp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp,
        distributed_timeout_minutes=TIMEOUT_MINUTES,
        create_gloo_process_groups=False,
    )
    _seed(seed)
    model_parallel = _create_groups(_ranks(layout, "tp-cp-pp"), place.rank, "TENSOR_CONTEXT_PIPELINE")
    feed = _feed_group("tp-cp-pp", layout, place.rank, model_parallel)
    return Groups(
        layout=layout,
        device=device,
        rank=place.rank,
        world_size=place.world_size,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=parallel_state.get_tensor_model_parallel_world_size(),
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=parallel_state.get_context_parallel_world_size(),
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=parallel_state.get_pipeline_model_parallel_world_size(),
        ep_rank=parallel_state.get_expert_model_parallel_rank(),
        etp_rank=parallel_state.get_expert_tensor_parallel_rank(),
        is_first_stage=parallel_state.is_pipeline_first_stage(),
        is_last_stage=parallel_state.is_pipeline_last_stage(),
        dp=parallel_state.get_data_parallel_group(),
        dp_cp=parallel_state.get_data_parallel_group(with_context_parallel=True),
        tp=parallel_state.get_tensor_model_parallel_group(),
        cp=parallel_state.get_context_parallel_group(),
        pp=parallel_state.get_pipeline_model_parallel_group(),
        ep=parallel_state.get_expert_model_parallel_group(),
        vision=_vision_group(layout, place.rank),
        model_parallel=model_parallel,
        feed=feed,
        feed_pixels=feed if layout.pp == 1 else _feed_group("tp-cp", layout, place.rank, model_parallel),
    )


def shutdown() -> None:
    """End torch.distributed, whether or not a layout is up. Does nothing when it never started."""
    if dist.is_initialized():
        _destroy_groups()
        dist.destroy_process_group()


def all_reduce_sum(tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Sum over the group (all ranks by default), in place."""
    dist.all_reduce(tensor, group=group)
    return tensor


def broadcast_object(value: T, group: dist.ProcessGroup | None = None) -> T:
    """The value of the group's first rank, on every rank of it. The value must pickle."""
    box = [value]
    dist.broadcast_object_list(box, group=group, group_src=0)
    return box[0]


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The values of all ranks of the group, by rank, on every rank. They must pickle."""
    box: list[T | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(box, value, group=group)
    return cast("list[T]", box)


def gather_to_first_rank(value: T) -> list[T]:
    """The values of all ranks, by rank, on the first one; nothing on the others. They must pickle."""
    box: list[T | None] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, box, dst=0)
    return cast("list[T]", box or [])


def gather_integers(values: np.ndarray, group: dist.ProcessGroup, device: torch.device) -> list[np.ndarray]:
    """The int64 [any length] of all ranks of the group, by rank, on every rank: two small all-gathers."""
    size = dist.get_world_size(group)
    lengths = torch.empty(size, dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(lengths, torch.tensor([len(values)], device=device), group=group)
    by_rank = lengths.tolist()
    padded = torch.zeros(max(by_rank), dtype=torch.int64)
    padded[: len(values)] = torch.from_numpy(values)
    table = torch.empty(size * len(padded), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(table, padded.to(device), group=group)
    return [row[:length] for row, length in zip(table.cpu().numpy().reshape(size, -1), by_rank, strict=True)]


def from_first_rank(ask: Callable[[], T]) -> T:
    """What ``ask`` gives on the first rank, on every rank; a UserError it raises there is raised on all."""
    answer: T | UserError | None = None
    if dist.get_rank() == 0:
        try:
            answer = ask()
        except UserError as error:
            answer = error
    answer = broadcast_object(answer)
    if isinstance(answer, UserError):
        raise answer
    return cast("T", answer)


def all_agree(flag: bool, group: dist.ProcessGroup | None = None) -> bool:
    """True when ``flag`` is True on every rank of the group."""
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    vote = torch.tensor([int(flag)], device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MIN, group=group)
    return bool(vote.item())


def first_host(node_list: str) -> str:
    """The first name of a Slurm node list: ``gpu[03-07,9],x1`` -> ``gpu03``."""
    found = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", node_list)
    if found is None:
        raise UserError(f"SLURM_NODELIST={node_list!r}: no host name in it; set MASTER_ADDR")
    return found.group(1) + (found.group(2) or "")


def _join(place: Place, device: Device) -> None:
    timeout = datetime.timedelta(minutes=TIMEOUT_MINUTES)
    if place.world_size == 1:
        dist.init_process_group(device.backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    address = os.environ.get("MASTER_ADDR") or first_host(os.environ.get("SLURM_NODELIST", ""))
    # Every task of a job derives the same port, and two jobs on a node rarely do.
    port = int(os.environ.get("MASTER_PORT") or 20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000)
    dist.init_process_group(
        device.backend,
        init_method=f"tcp://{address}:{port}",
        rank=place.rank,
        world_size=place.world_size,
        timeout=timeout,
    )


def _feed_group(axes: str, layout: Layout, rank: int, model_parallel: dist.ProcessGroup) -> dist.ProcessGroup:
    if model_parallel.size() == 1:
        return model_parallel  # nothing is ever sent
    return _create_groups(_ranks(layout, axes), rank, f"FEED_{axes}", "gloo")


def _vision_group(layout: Layout, rank: int) -> dist.ProcessGroup:
    if layout.vision_dp == 1:
        return parallel_state.get_context_parallel_group()
    size = layout.vision_dp * layout.cp
    blocks = [ranks[i : i + size] for ranks in _ranks(layout, "cp-dp") for i in range(0, len(ranks), size)]
    return _create_groups(blocks, rank, "VISION")


def _ranks(layout: Layout, axes: str) -> list[list[int]]:
    """The ranks along these axes, in the order of the grid."""
    grid = parallel_state.RankGenerator(
        tp=layout.tp, ep=1, dp=layout.dp, pp=layout.pp, cp=layout.cp, order="tp-cp-ep-dp-pp"
    )
    return cast("list[list[int]]", grid.get_ranks(axes))


def _create_groups(
    all_ranks: Sequence[list[int]], rank: int, description: str, backend: str | None = None
) -> dist.ProcessGroup:
    """The one of these groups that this rank is in; every rank takes part in making each."""
    own = None
    for ranks in all_ranks:
        group = parallel_state.create_group(
            ranks, timeout=datetime.timedelta(minutes=TIMEOUT_MINUTES), backend=backend, group_desc=description
        )
        if rank in ranks:
            own = group
    assert own is not None, "every rank is in one of the groups"
    return own


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def _destroy_groups() -> None:
    # megatron forgets its groups without ending them, and its MoE log would keep reducing over dead ones
    groups = [group for group in parallel_state._global_process_group_list or [] if group is not None]
    parallel_state.destroy_model_parallel()
    get_moe_layer_wise_logging_tracker().clear()
    forget_loss_scale()
    for group in groups:
        dist.destroy_process_group(group)
