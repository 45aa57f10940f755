"""Device and groups: idempotent, several layouts in one job, the launchers' variables."""

from __future__ import annotations

import pytest
import torch

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.parallel.adamw import AdamW
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import (
    all_agree,
    all_reduce_sum,
    broadcast_object,
    first_host,
    start_groups,
)
from megatron_qwen3vl.parallel.layout import Layout
from megatron_qwen3vl.parallel.place import Place, read_place
from tests.distributed.spawn import run_ranks


def test_start_device_is_idempotent() -> None:
    first = start_device("cpu")
    patched = torch.zeros, torch.cuda.Stream, torch.Tensor.type
    assert start_device() == start_device("cpu") == first
    assert patched == (torch.zeros, torch.cuda.Stream, torch.Tensor.type)
    assert torch.zeros(2, device="cuda").device.type == "cpu"
    assert torch.cuda.current_device() == torch.device("cpu")
    with torch.device("meta"):
        assert torch.empty(2, device=torch.cuda.current_device()).is_meta
    with pytest.raises(UserError, match="device=gpu"):
        start_device("gpu")


def two_layouts() -> list[tuple]:
    device = start_device("cpu")
    seen = []
    for axes in ({"tp": 2, "sp": True}, {"pp": 2}, {"cp": 2}, {}):
        sizes = {"tp": 1, "pp": 1, "vpp": 1, "cp": 1, "ep": 1, "etp": 1, "sp": False, **axes}
        groups = start_groups(Layout(world_size=2, **sizes), device, seed=3)
        total = all_reduce_sum(torch.tensor(groups.rank + 1.0), groups.model_parallel).item()
        name = broadcast_object(f"from {groups.rank}")
        agreed = all_agree(True), all_agree(groups.rank == 0)
        place = groups.dp_rank, groups.tp_rank, groups.cp_rank, groups.pp_rank
        seen.append((place, total, name, agreed, groups.is_first_stage, groups.is_last_stage, groups.is_writer))
        groups.stop()
    return seen


def test_layouts_follow_one_another() -> None:
    first, second = run_ranks(two_layouts, 2)
    agreed = (True, False)
    assert first == [
        ((0, 0, 0, 0), 3.0, "from 0", agreed, True, True, True),
        ((0, 0, 0, 0), 3.0, "from 0", agreed, True, False, True),
        ((0, 0, 0, 0), 3.0, "from 0", agreed, True, True, True),
        ((0, 0, 0, 0), 1.0, "from 0", agreed, True, True, True),
    ]
    assert [row[0] for row in second] == [(0, 1, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (1, 0, 0, 0)]
    assert [row[1] for row in second] == [3.0, 3.0, 3.0, 2.0]
    assert not any(row[6] for row in second) and second[1][4:6] == (False, True)


def test_places() -> None:
    assert read_place({}) == Place(0, 1, 0)
    assert read_place({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Place(3, 8, 1)
    assert read_place({"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_LOCALID": "2"}) == Place(5, 16, 2)
    assert read_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "1"}) == Place(0, 1, 0)
    with pytest.raises(UserError, match="WORLD_SIZE"):
        read_place({"RANK": "0"})
    hosts = [first_host(nodes) for nodes in ("gpu[03-07,9],x1", "a1,a2", "node-7")]
    assert hosts == ["gpu03", "a1", "node-7"]


def test_adamw_equals_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw) for shape in ((5, 3), (7,), (2, 2, 2))]
    ours = [torch.nn.Parameter(t.clone()) for t in start]
    theirs = [torch.nn.Parameter(t.clone()) for t in start]
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    one = AdamW([{"params": ours}], **settings)
    other = torch.optim.AdamW(theirs, fused=True, **settings)
    for _ in range(5):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=draw)
            its.grad = mine.grad.clone()
        one.step()
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert one.param_groups[0]["step"] == 5
