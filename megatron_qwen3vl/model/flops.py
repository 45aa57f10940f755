"""Floating-point operations and parameter counts of a model, as whole numbers.

A multiplication with its addition counts 2. Norms, activations, rotary angles and the softmax are left out; recompute
is never counted. Two conventions for causal attention:

    causal   what a document needs: n (n + 1) / 2 pairs of tokens (this project's, and megatron's, "model FLOPs")
    full     n^2 pairs, as PaLM's formula and most published MFU figures count
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from megatron_qwen3vl.config.schema import ModelConfig
from megatron_qwen3vl.parallel.pipeline import PipelineCosts

Grid = tuple[int, int, int]  # (t, h, w) in patches


@dataclass(frozen=True)
class ForwardFlops:
    """One forward pass. ``*_linear`` are products with weights, ``*_attention`` of activations with activations."""

    vision_linear: int
    vision_attention: int
    merger_linear: int
    language_linear: int
    language_attention: int

    @property
    def total(self) -> int:
        linear = self.vision_linear + self.merger_linear + self.language_linear
        return linear + self.vision_attention + self.language_attention


def forward_flops(
    model: ModelConfig, lengths: Sequence[int], grids: Sequence[Grid], num_labels: int, full: bool = False
) -> ForwardFlops:
    """Documents of these lengths (padding counted as one), with these images; the head runs at labels only."""
    text, vision = model.text_config, model.vision_config
    num_tokens = sum(lengths)
    num_patches = sum(t * h * w for t, h, w in grids)
    num_visual = num_patches // vision.spatial_merge_size**2
    patch_pairs = sum(t * (h * w) ** 2 for t, h, w in grids)
    token_pairs = sum(n * n if full else n * (n + 1) // 2 for n in lengths)
    folded = vision.hidden_size * vision.spatial_merge_size**2
    per_patch = vision.patch_values * vision.hidden_size + vision.depth * (
        4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    )
    num_mergers = 1 + len(vision.deepstack_visual_indexes)
    heads_width = text.num_attention_heads * text.head_dim
    return ForwardFlops(
        vision_linear=2 * num_patches * per_patch,
        vision_attention=4 * patch_pairs * vision.hidden_size * vision.depth,
        merger_linear=2 * num_visual * num_mergers * (folded**2 + folded * vision.out_hidden_size),
        language_linear=2 * num_tokens * text.num_hidden_layers * _active_weights_per_layer(model)
        + 2 * num_labels * text.hidden_size * text.vocab_size,
        language_attention=4 * token_pairs * heads_width * text.num_hidden_layers,
    )


def training_flops(
    model: ModelConfig,
    lengths: Sequence[int],
    grids: Sequence[Grid],
    num_labels: int,
    trainable: Set[str],
    full: bool = False,
) -> int:
    """Forward and backward with these modules trainable (out of vision, merger, language).

    The backward of a product with weights is one product of its size for the input's gradient, where anything before
    it learns, and one for the weight's, where the weight learns. Attention's backward is twice its forward.
    """
    forward = forward_flops(model, lengths, grids, num_labels, full)
    vision, merger, language = ("vision" in trainable, "merger" in trainable, "language" in trainable)
    backward = 0
    if vision:
        backward += 2 * (forward.vision_linear + forward.vision_attention)
    backward += forward.merger_linear * (vision + merger)
    if vision or merger or language:
        backward += forward.language_linear * (1 + language) + 2 * forward.language_attention
    return forward.total + backward


def pipeline_costs(model: ModelConfig, visual_share: float) -> PipelineCosts:
    """What pipeline parts cost: ViT and mergers, one language layer, the head; of a forward pass over 4,096 positions.

    The positions are assumed to be one document, ``visual_share`` of them tokens of pictures of 1,024 patches and the
    others labels. All modules are taken to learn: backward and recompute then multiply everything alike.
    """
    positions, grid = 4096, (1, 32, 32)
    tokens_per_picture = 1024 // model.vision_config.spatial_merge_size**2
    text, picture = forward_flops(model, [positions], [], 0), forward_flops(model, [], [grid], 0)
    return PipelineCosts(
        first=round(positions * visual_share * picture.total / tokens_per_picture),
        layer=text.total // model.text_config.num_hidden_layers,
        last=forward_flops(model, [], [], round(positions * (1 - visual_share))).total,
    )


def count_parameters(model: ModelConfig) -> int:
    """Parameters of the whole model, a tied matrix once."""
    return sum(parameters_by_module(model).values())


def parameters_by_module(model: ModelConfig) -> dict[str, int]:
    """Parameters of vision, merger and language."""
    text, vision = model.text_config, model.vision_config
    width, folded = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    vision_layer = 4 * width**2 + 4 * width + 2 * width * vision.intermediate_size + vision.intermediate_size + width
    vision_layer += 4 * width  # two norms
    linear_of_merger = folded**2 + folded + folded * vision.out_hidden_size + vision.out_hidden_size
    levels = len(vision.deepstack_visual_indexes)
    attention = _attention_weights(model) + 2 * text.head_dim
    if text.num_experts:
        experts = 3 * text.hidden_size * text.moe_intermediate_size * text.num_experts
        feed_forward = experts + text.hidden_size * text.num_experts
    else:
        feed_forward = 3 * text.hidden_size * text.intermediate_size
    embedding = text.vocab_size * text.hidden_size
    return {
        "vision": vision.patch_values * width
        + width
        + vision.num_position_embeddings * width
        + vision.depth * vision_layer,
        "merger": (1 + levels) * linear_of_merger + 2 * width + levels * 2 * folded,
        "language": embedding * (1 if model.tie_word_embeddings else 2)
        + text.num_hidden_layers * (attention + feed_forward + 2 * text.hidden_size)
        + text.hidden_size,
    }


def _attention_weights(model: ModelConfig) -> int:
    text = model.text_config
    return text.hidden_size * text.head_dim * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)


def _active_weights_per_layer(model: ModelConfig) -> int:
    """Weights of a decoder layer that multiply one token: with experts, the router and the chosen ones."""
    text = model.text_config
    if text.num_experts:
        chosen = 3 * text.hidden_size * text.moe_intermediate_size * text.num_experts_per_tok
        return _attention_weights(model) + chosen + text.hidden_size * text.num_experts
    return _attention_weights(model) + 3 * text.hidden_size * text.intermediate_size
