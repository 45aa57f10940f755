"""MRoPE positions against transformers' get_rope_index."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_qwen3vl.data.positions import mrope_positions

MERGE = 2


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_transformers(seed: int) -> None:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    generator = np.random.default_rng(seed)
    types, starts, images, videos, grids = [], [], [], [], []

    def put(modality: int, height: int, width: int) -> None:
        types.append(0)  # <|vision_start|>
        starts.append(len(types))
        grids.append((1, height * MERGE, width * MERGE))
        types.extend([modality] * (height * width))
        types.append(0)

    for _ in range(generator.integers(1, 7)):
        types.extend([0] * int(generator.integers(0, 6)))
        height, width = generator.integers(1, 6, 2).tolist()
        if generator.random() < 0.5:
            put(1, height, width)
            images.append((1, height * MERGE, width * MERGE))
        else:
            groups = int(generator.integers(1, 4))
            videos.append((groups, height * MERGE, width * MERGE))
            for _ in range(groups):
                types.extend([0] * 3)  # the timestamp
                put(2, height, width)
    types.extend([0] * int(generator.integers(0, 4)))
    model = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=MERGE)))
    model.get_vision_position_ids = partial(Qwen3VLModel.get_vision_position_ids, model)
    expected, _ = Qwen3VLModel.get_rope_index(
        model,
        torch.zeros(1, len(types), dtype=torch.long),
        torch.tensor([types]),
        torch.tensor(images) if images else None,
        torch.tensor(videos) if videos else None,
    )
    got = mrope_positions(len(types), np.array(starts), np.array(grids, np.int32), MERGE)
    np.testing.assert_array_equal(got, expected[:, 0].numpy())


def test_text_counts_up() -> None:
    got = mrope_positions(5, np.zeros(0, np.int64), np.zeros((0, 3), np.int32), MERGE)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, np.tile(np.arange(5), (3, 1)))
