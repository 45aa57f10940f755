"""The balance of the ViT's work over data and context-parallel ranks, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from spawn import run_ranks

from megatron_qwen3vl.config.schema import ParallelConfig
from tests.parity import reference as ref

ALONE = ref.PLAIN
CONTEXT, DATA = replace(ALONE, cp=2), replace(ALONE, vision_dp=2)


def balances(layouts: list[ParallelConfig], costs: list[list[tuple[float, ...]]]) -> list[list[float | None]]:
    """In each process, for each layout: of its rank's micro-batches ``costs``, and of none."""
    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import start_groups
    from megatron_qwen3vl.parallel.layout import Layout
    from megatron_qwen3vl.train.figures import gather_losses
    from megatron_qwen3vl.train.forward import Report

    device, found = start_device("cpu"), []
    for parallel in layouts:
        groups = start_groups(Layout.from_config(parallel, 2), device)
        own = costs[groups.rank] if groups.vision.size() == 1 else costs[2]
        found.append(
            [
                gather_losses(
                    Report(vision_costs=tuple(given)), [], 0.5, 1.0, False, True, groups, device.device
                ).vision_balance
                for given in (own, [(0.0,) * groups.vision.size()])
            ]
        )
        groups.stop()
    return found


def test_vision_balance() -> None:
    """Two micro-batches: alone the step waits for the slower rank; sharing, each micro-batch for its busiest."""
    alone = [[(6.0,), (0.0,)], [(1.0,), (1.0,)]]
    together = [(4.0, 3.0), (0.0, 1.0)]
    for found in run_ranks(balances, 2, [ALONE, CONTEXT, DATA], [*alone, together]):
        assert found == [[pytest.approx(6 / 4), None], [pytest.approx(5 / 4), None], [pytest.approx(5 / 4), None]]
