"""The balance of the ViT's work over data and context-parallel ranks, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from spawn import run_ranks

from megatron_qwen3vl.batch import Pack
from tests.parity import reference as ref


def balances(packs: list[Pack], cp: int) -> list[float | None]:
    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import start_groups
    from megatron_qwen3vl.parallel.layout import Layout
    from megatron_qwen3vl.train.figures import vision_balance

    device = start_device("cpu")
    groups = start_groups(Layout.from_config(replace(ref.PLAIN, cp=cp), 2), device)
    vision = ref.model_config("dense_tied").vision_config
    mine = packs[groups.dp_rank :: groups.dp_size]
    found = [vision_balance(part, 1, vision, groups, device.device) for part in (mine, [packs[-1]])]
    groups.stop()
    return found


def test_vision_balance() -> None:
    """All images in one pack: one of two data ranks has all the work, two context ranks share it."""
    model = ref.model_config("dense_tied")
    text, _, images, *_ = ref.standard_cases(model)  # images: one of 4 patches, two of 60
    packs = [ref.make_pack(0, [images], 0, 96), ref.make_pack(1, [text], 0, 96)]
    vision = model.vision_config
    small, large = (
        n * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size + 2 * n * vision.hidden_size)
        for n in (4, 60)
    )
    shared = (large + small) / (large + small / 2)
    for cp, expected in ((1, 2.0), (2, shared)):
        for found in run_ranks(balances, 2, packs, cp):
            assert found == [pytest.approx(expected), None]
