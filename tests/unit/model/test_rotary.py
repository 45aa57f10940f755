"""Rotary angles and rotation against transformers' modules."""

from __future__ import annotations

import pytest
import torch

from megatron_qwen3vl.model.rotary import channel_axes, mrope_angles, rotate, vision_angles

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
    assert angles.shape == (50, width // 2) and angles.dtype == torch.float32
    assert torch.equal(twice(angles.cos()), cosine[0]) and torch.equal(twice(angles.sin()), sine[0])


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
    assert torch.equal(twice(angles.cos()), cosine) and torch.equal(twice(angles.sin()), sine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_and_its_gradient_equal_transformers(dtype: torch.dtype) -> None:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

    generator = torch.Generator().manual_seed(0)
    mixed, upstream = (torch.randn(2, 7, 3, 24, generator=generator).to(dtype)[1] for _ in range(2))
    angles = torch.randn(7, 12, generator=generator) * 9
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    heads = mixed.clone().requires_grad_()
    expected, _ = apply_rotary_pos_emb(heads, heads, twice(cosine), twice(sine))
    (expected_gradient,) = torch.autograd.grad(expected, heads, upstream)
    own = rotate(heads, cosine[:, None], sine[:, None])
    (own_gradient,) = torch.autograd.grad(own, heads, upstream)
    tolerance = {"rtol": 0.0, "atol": 2e-6 if dtype == torch.float32 else 4e-2}
    torch.testing.assert_close(own, expected, **tolerance)
    torch.testing.assert_close(own_gradient, expected_gradient, **tolerance)


def twice(halves: torch.Tensor) -> torch.Tensor:
    return torch.cat((halves, halves), dim=-1)
