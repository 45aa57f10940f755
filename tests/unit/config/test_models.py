"""The six real shapes against the parameter counts that recipe.md states, by a closed formula."""

from __future__ import annotations

import pytest

from megatron_qwen3vl.config.check import model_problems
from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.config.schema import ModelConfig, TextConfig, VisionConfig


def text_parameters(text: TextConfig, tied: bool, active: bool = False) -> int:
    attention = text.hidden_size * text.head_dim * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    norms = 2 * text.hidden_size + 2 * text.head_dim
    if text.num_experts:
        experts = text.num_experts_per_tok if active else text.num_experts
        feed_forward = text.num_experts * text.hidden_size + experts * 3 * text.hidden_size * text.moe_intermediate_size
    else:
        feed_forward = 3 * text.hidden_size * text.intermediate_size
    embeddings = text.vocab_size * text.hidden_size * (1 if tied else 2)
    return text.num_hidden_layers * (attention + norms + feed_forward) + text.hidden_size + embeddings


def vision_parameters(vision: VisionConfig) -> int:
    d, folded = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    layer = 4 * d * d + 4 * d + 2 * d * vision.intermediate_size + vision.intermediate_size + d + 4 * d
    mlp = folded * folded + folded + folded * vision.out_hidden_size + vision.out_hidden_size
    main, deepstack = mlp + 2 * d, mlp + 2 * folded  # the main merger normalises before the fold
    patch = vision.patch_values * d + d
    table = vision.num_position_embeddings * d
    return patch + table + vision.depth * layer + main + len(vision.deepstack_visual_indexes) * deepstack


def total(model: ModelConfig) -> int:
    return text_parameters(model.text_config, model.tie_word_embeddings) + vision_parameters(model.vision_config)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("2b", 2.128), ("4b", 4.438), ("8b", 8.767), ("32b", 33.357), ("30b_a3b", 31.071), ("235b_a22b", 235.670)],
)
def test_size_is_the_recipes(name: str, billions: float) -> None:
    model = load_config([f"model={name}"]).model
    assert round(total(model) / 1e9, 3) == billions
    assert list(model_problems(model)) == []


@pytest.mark.parametrize(("name", "billions"), [("30b_a3b", 3.35), ("235b_a22b", 22.2)])
def test_active_size_is_the_recipes(name: str, billions: float) -> None:
    model = load_config([f"model={name}"]).model
    active = text_parameters(model.text_config, model.tie_word_embeddings, active=True) / 1e9
    assert active == pytest.approx(billions, abs=0.05)
