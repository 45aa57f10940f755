"""Rotary angles against transformers' modules."""

from __future__ import annotations

import pytest
import torch

from megatron_qwen3vl.model.rotary import channel_axes, mrope_angles, vision_angles

SECTIONS = [(128, (24, 20, 20)), (32, (6, 5, 5)), (24, (6, 3, 3))]


@pytest.mark.parametrize(("width", "section"), SECTIONS)
def test_mrope_equals_transformers(width: int, section: tuple[int, int, int]) -> None:
    from transformers import Qwen3VLTextConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": list(section), "mrope_interleaved": True}
    config = Qwen3VLTextConfig(head_dim=width, hidden_size=width, num_attention_heads=1, rope_parameters=rope)
    positions = torch.randint(0, 262144, (3, 50), generator=torch.Generator().manual_seed(0))
    cosine, sine = Qwen3VLTextRotaryEmbedding(config)(torch.zeros(1), positions[:, None])
    angles = mrope_angles(positions, width, 5e6, section)
    assert angles.shape == (50, 1, 1, width) and angles.dtype == torch.float32
    assert torch.equal(angles[:, 0, 0].cos(), cosine[0]) and torch.equal(angles[:, 0, 0].sin(), sine[0])


@pytest.mark.parametrize(("width", "section"), SECTIONS)
def test_each_axis_has_its_share_of_channels(width: int, section: tuple[int, int, int]) -> None:
    axes = channel_axes(width, section)
    assert [axes.count(axis) for axis in range(3)] == list(section)
    assert axes[:6] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("width", [72, 64, 12])
def test_vision_equals_transformers(width: int) -> None:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionRotaryEmbedding

    config = Qwen3VLVisionConfig(
        hidden_size=width * 2, num_heads=2, rope_parameters={"rope_type": "axial", "rope_theta": 10000.0}
    )
    where = torch.randint(0, 200, (40, 2), generator=torch.Generator().manual_seed(0))
    cosine, sine = Qwen3VLVisionRotaryEmbedding(config)(torch.zeros(1), where)
    angles = vision_angles(where[:, 0], where[:, 1], width, 10000.0)
    assert torch.equal(angles[:, 0, 0].cos(), cosine) and torch.equal(angles[:, 0, 0].sin(), sine)
