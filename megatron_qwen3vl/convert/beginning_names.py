"""The tables of a run that begins from two models: Qwen3's tensors and SigLIP-2's -> ours, one way only.

The mergers have no row: neither model has them. Of SigLIP the last norm, the pooling head and the text model have no
place in ours (``is_left_out``).

Names: ``transformers/models/qwen3``, ``qwen3_moe``, ``siglip`` and ``siglip2``; experts are stored one by one, as in
the published files and as transformers writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from megatron_qwen3vl.config.schema import ModelConfig, TextConfig
from megatron_qwen3vl.convert.beginning_config import Siglip
from megatron_qwen3vl.convert.names import (
    NameTable,
    Rule,
    column_rules,
    dense_rules,
    language_rules,
    norm_rules,
    row_rules,
)
from megatron_qwen3vl.convert.operations import COLUMNS, GATE_UP_ROWS, ROWS, GroupQKV, StackRows

PATCH_EMBEDDING = "embeddings.patch_embedding.weight"
PREFIXES = ("vision_model.", "")  # of the whole model, and of a vision model that transformers 5 writes
_LEFT_OUT = ("text_model.", "logit_scale", "logit_bias")
_LEFT_OUT_OF_VISION = ("post_layernorm.", "head.", "embeddings.position_ids")


@dataclass(frozen=True)
class InflatePatches:
    """The patch embedding of one frame -> of ``frames``: each has the weights divided by their number.

    So a frame that is repeated gives what it gave alone. A convolution's [D, channels, row, column], or, ``linear``,
    [D, row x column x channels] -> our [D, channels x frames x row x column].
    """

    channels: int
    frames: int
    patch_size: int
    linear: bool

    def merge(self, pieces: Sequence[Tensor]) -> Tensor:
        kernel = pieces[0].float()
        if self.linear:
            kernel = kernel.unflatten(1, (self.patch_size, self.patch_size, self.channels)).permute(0, 3, 1, 2)
        return (kernel / self.frames)[:, :, None].expand(-1, -1, self.frames, -1, -1).flatten(1)

    def split(self, full: Tensor) -> list[Tensor]:
        kernel = full.unflatten(1, (self.channels, self.frames, self.patch_size, self.patch_size)).sum(2)
        return [kernel.permute(0, 2, 3, 1).flatten(1) if self.linear else kernel]


@dataclass(frozen=True)
class ResizeTable:
    """A square position table of ``source_side`` rows and columns -> of ``side``: the values SigLIP itself would use.

    Each as its own model in transformers resizes it to a picture's grid: ``siglip`` bicubic, ``siglip2``
    (``antialiased``) bilinear, corners not aligned. So a picture of side x side patches gets from our table what it got
    from SigLIP. ``split`` resizes back, which restores the shape and, where the sides differ, not the values.
    """

    source_side: int
    side: int
    antialiased: bool

    def merge(self, pieces: Sequence[Tensor]) -> Tensor:
        return self._resize(pieces[0], self.source_side, self.side)

    def split(self, full: Tensor) -> list[Tensor]:
        return [self._resize(full, self.side, self.source_side)]

    def _resize(self, table: Tensor, old: int, new: int) -> Tensor:
        if old == new:
            return table
        grid_dhw = table.float().unflatten(0, (old, old)).permute(2, 0, 1)
        mode = "bilinear" if self.antialiased else "bicubic"
        resized = F.interpolate(
            grid_dhw[None], size=(new, new), mode=mode, align_corners=False, antialias=self.antialiased
        )
        return resized[0].flatten(1).T


def language_table(model: ModelConfig) -> NameTable:
    """Qwen3, dense or with experts: names as in Qwen3-VL, without the middle word."""
    hf = "model."
    text = model.text_config
    feed_forward = _single_experts(text, hf) if text.num_experts else dense_rules(text, hf)
    return NameTable.write_out(language_rules(model, hf, feed_forward), model)


def vision_table(model: ModelConfig, siglip: Siglip, prefix: str) -> NameTable:
    """SigLIP's or SigLIP-2's vision model; ``prefix`` (one of PREFIXES) begins its tensors' names."""
    vision = model.vision_config
    width, ffn = vision.hidden_size, vision.intermediate_size
    embeddings = prefix + "embeddings."
    inflate = InflatePatches(
        vision.in_channels, vision.temporal_patch_size, vision.patch_size, linear=siglip.linear_patches
    )
    resize = ResizeTable(siglip.position_side, _side(vision.num_position_embeddings), siglip.linear_patches)
    table_shape = (vision.num_position_embeddings, width)
    hf, ours = prefix + "encoder.layers.{block}.", "vision.layers.{block}."
    qkv = {kind: tuple(f"{hf}self_attn.{x}_proj.{kind}" for x in "qkv") for kind in ("weight", "bias")}
    heads = GroupQKV(vision.num_heads, 1)
    rows = [
        Rule((prefix + PATCH_EMBEDDING,), "vision.patch_embed.weight", (width, vision.patch_values), inflate, ROWS),
        Rule((embeddings + "patch_embedding.bias",), "vision.patch_embed.bias", (width,), partition=ROWS),
        Rule((embeddings + "position_embedding.weight",), "vision.position_table.weight", table_shape, resize, ROWS),
        *norm_rules(hf + "layer_norm1", ours + "input_layernorm", width),
        *norm_rules(hf + "layer_norm2", ours + "pre_mlp_layernorm", width),
        Rule(qkv["weight"], ours + "self_attention.linear_qkv.weight", (3 * width, width), heads, ROWS),
        Rule(qkv["bias"], ours + "self_attention.linear_qkv.bias", (3 * width,), heads, ROWS),
        *row_rules(hf + "self_attn.out_proj", ours + "self_attention.linear_proj", width, width),
        *column_rules(hf + "mlp.fc1", ours + "mlp.linear_fc1", ffn, width),
        *row_rules(hf + "mlp.fc2", ours + "mlp.linear_fc2", width, ffn),
    ]
    return NameTable.write_out(rows, model)


def is_left_out(name: str, prefix: str) -> bool:
    """A tensor of SigLIP's that our model has no place for."""
    return name.startswith((*_LEFT_OUT, *(prefix + part for part in _LEFT_OUT_OF_VISION)))


def _single_experts(text: TextConfig, hf: str) -> list[Rule]:
    width, ffn = text.hidden_size, text.moe_intermediate_size
    hf, ours = hf + "layers.{layer}.mlp.", "language.decoder.layers.{layer}.mlp."
    theirs, expert = hf + "experts.{expert}.", ours + "experts.local_experts.{expert}."
    gate_up = (theirs + "gate_proj.weight", theirs + "up_proj.weight")
    return [
        Rule((hf + "gate.weight",), ours + "router.weight", (text.num_experts, width)),
        Rule(gate_up, expert + "linear_fc1.weight", (2 * ffn, width), StackRows(), GATE_UP_ROWS),
        Rule((theirs + "down_proj.weight",), expert + "linear_fc2.weight", (width, ffn), partition=COLUMNS),
    ]


def _side(positions: int) -> int:
    return round(positions**0.5)
