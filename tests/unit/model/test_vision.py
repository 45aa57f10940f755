"""Patch coordinates and the interpolation of the position table, against transformers."""

from __future__ import annotations

import pytest
import torch

from megatron_qwen3vl.model.vision import interpolation, patch_coordinates

CPU = torch.device("cpu")
GRIDS = [[[1, 2, 2]], [[1, 4, 6], [1, 2, 14], [3, 6, 2]], [[1, 96, 2], [1, 48, 48], [2, 10, 62]], []]


@pytest.mark.parametrize("grids", GRIDS)
def test_coordinates(grids: list[list[int]]) -> None:
    from transformers.vision_utils import get_vision_position_ids

    rows, columns, sizes = patch_coordinates(torch.tensor(grids, dtype=torch.int64).reshape(-1, 3), 2, CPU)
    if not grids:
        assert rows.shape == columns.shape == (0,) and sizes.shape == (0, 2)
        return
    expected = get_vision_position_ids(torch.tensor(grids), 2)
    assert torch.equal(torch.stack((rows, columns), dim=1), expected)


@pytest.mark.parametrize("grids", GRIDS[:3])
@pytest.mark.parametrize("side", [48, 6])
def test_interpolation(grids: list[list[int]], side: int) -> None:
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    expected = get_vision_interpolation_indices_and_weights(
        torch.tensor(grids), side, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    own = interpolation(*patch_coordinates(torch.tensor(grids), 2, CPU), side)
    assert torch.equal(own[0], expected[0]) and torch.equal(own[1], expected[1])
