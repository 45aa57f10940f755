"""The vision encoder: uint8 patches -> visual tokens for the language model.

    patches [P, C] uint8 -> normalise -> patch_embed [P, D] + position table, interpolated to each grid
        -> layers (megatron-core's, attention inside one image or frame group) -> merger [V, out]
                        \\-> after the tapped layers: deepstack_mergers -> levels [L, V, out]

A batch without pictures sends one blank block through and drops its tokens: the same kernels and collectives as on
every other rank, and a zero gradient, not a missing one, for every trainable weight.

Shapes: I images or temporal groups, P patches, C values of a patch, D width, H head width, V merged visual tokens,
L DeepStack levels.
"""

from __future__ import annotations

import contextlib

import torch
from megatron.core import tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from megatron_qwen3vl.config.schema import VisionConfig
from megatron_qwen3vl.model.attention import PackedAttention, Spans, make_spans
from megatron_qwen3vl.model.layer import Layer
from megatron_qwen3vl.model.merger import Merger, ShardedModuleList
from megatron_qwen3vl.model.rotary import vision_angles


class VisionEncoder(MegatronModule):
    """ViT, main merger and DeepStack mergers; built on the first pipeline chunk only."""

    def __init__(self, config: TransformerConfig, vision: VisionConfig, groups: ProcessGroupCollection) -> None:
        super().__init__(config)
        self.vision = vision
        self.tp_group = groups.tp
        dtype = config.params_dtype
        self.patch_embed = torch.nn.Linear(vision.patch_values, vision.hidden_size, bias=True, dtype=dtype)
        self.position_table = torch.nn.Embedding(vision.num_position_embeddings, vision.hidden_size, dtype=dtype)
        spec = _layer_spec()
        self.layers = ShardedModuleList(
            Layer(config, spec, layer_number=number + 1, pg_collection=groups) for number in range(vision.depth)
        )
        self.merger = Merger(config, vision, fold_first=False, groups=groups)
        self.deepstack_mergers = ShardedModuleList(
            Merger(config, vision, fold_first=True, groups=groups) for _ in vision.deepstack_visual_indexes
        )

    def forward(self, patches: torch.Tensor, grids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """patches uint8 [P, C] in merge-block order, grids int64 [I, 3] (t, h, w) on the CPU.

        Returns the visual tokens [V, out] and the DeepStack levels [L, V, out], in the order of the patches.
        """
        merge_area = self.vision.spatial_merge_size**2
        num_visual = len(patches) // merge_area
        if not num_visual:
            patches = patches.new_zeros(merge_area, self.vision.patch_values)
            grids = torch.tensor([[1, self.vision.spatial_merge_size, self.vision.spatial_merge_size]])
        # A frozen encoder keeps no graph: what follows from uint8 pixels needs no gradient.
        frozen = not any(p.requires_grad for p in self.encoder_parameters())
        with torch.no_grad() if frozen else contextlib.nullcontext():
            final_pd, tapped = self.encode(patches, grids)
        features_vd = self.merger(final_pd)[:num_visual]
        levels = [m(hidden_pd)[:num_visual] for m, hidden_pd in zip(self.deepstack_mergers, tapped, strict=True)]
        return features_vd, torch.stack(levels) if levels else features_vd.new_zeros(0, *features_vd.shape)

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters before the mergers."""
        return [p for module in (self.patch_embed, self.position_table, self.layers) for p in module.parameters()]

    def encode(self, patches: torch.Tensor, grids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Hidden states [P, D] after the last layer, and after each tapped one."""
        vision = self.vision
        rows, columns, sizes = patch_coordinates(grids, vision.spatial_merge_size, patches.device)
        angles = vision_angles(rows, columns, vision.hidden_size // vision.num_heads, vision.rope_theta)
        per_frame = tuple(h * w for t, h, w in grids.tolist() for _ in range(t))
        spans = make_spans(per_frame, patches.device, angles, self.config.params_dtype)
        hidden_p1d = (self.embed(patches) + self.positions(rows, columns, sizes)).unsqueeze(1)
        tapped: dict[int, torch.Tensor] = {}
        for index, layer in enumerate(self.layers):
            hidden_p1d = self.run_layer(layer, hidden_p1d, spans)
            if index in vision.deepstack_visual_indexes:
                tapped[index] = hidden_p1d.squeeze(1)
        return hidden_p1d.squeeze(1), [tapped[index] for index in vision.deepstack_visual_indexes]

    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        """uint8 [P, C] -> [P, D]: normalised to [-1, 1] in float32, then a linear map (a convolution's equal)."""
        pixels_pc = (patches.float() / 255.0 - 0.5) / 0.5
        return self.patch_embed(pixels_pc.to(self.patch_embed.weight.dtype))

    def positions(self, rows: torch.Tensor, columns: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """The position table interpolated to each patch of its image's grid: [P, D]."""
        side = int(self.vision.num_position_embeddings**0.5)
        indices, weights = interpolation(rows, columns, sizes, side)
        corners_p4d = self.position_table(indices) * weights[:, :, None]
        return corners_p4d.sum(1).to(self.patch_embed.weight.dtype)

    def run_layer(self, layer: torch.nn.Module, hidden: torch.Tensor, spans: Spans) -> torch.Tensor:
        def run(hidden: torch.Tensor) -> torch.Tensor:
            output, _ = layer(hidden, attention_mask=None, packed_seq_params=spans)
            return output

        if self.config.recompute_granularity == "full" and self.training and hidden.requires_grad:
            return tensor_parallel.checkpoint(run, False, hidden)
        return run(hidden)


def patch_coordinates(
    grids: torch.Tensor, merge: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where each patch stands in its frame: rows [P], columns [P], and its frame's height and width [P, 2].

    Patches come in merge blocks (block row, block column, row and column inside the block), frame after frame;
    transformers' ``get_vision_position_ids``.
    """
    total = int(grids.prod(dim=1).sum())  # before the move: no wait for the device
    grids = grids.to(device, non_blocking=True)
    counts = grids.prod(dim=1)
    sizes = torch.repeat_interleave(grids[:, 1:], counts, dim=0, output_size=total)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts, output_size=total)
    within = (torch.arange(total, device=device) - starts) % sizes.prod(dim=1)
    block, inside = within // merge**2, within % merge**2
    blocks_wide = sizes[:, 1] // merge
    rows = block // blocks_wide * merge + inside // merge
    columns = block % blocks_wide * merge + inside % merge
    return rows, columns, sizes


def interpolation(
    rows: torch.Tensor, columns: torch.Tensor, sizes: torch.Tensor, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bilinear interpolation with aligned corners of a [side, side] table: four indices and weights, [P, 4] each.

    transformers' ``get_vision_interpolation_indices_and_weights``.
    """
    row_taps, row_weights = _axis_taps(rows, sizes[:, 0], side)
    column_taps, column_weights = _axis_taps(columns, sizes[:, 1], side)
    indices = (row_taps[:, :, None] * side + column_taps[:, None, :]).flatten(1)
    weights = (row_weights[:, :, None] * column_weights[:, None, :]).flatten(1)
    return indices, weights


def _axis_taps(index: torch.Tensor, size: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = index.float() * (side - 1) / (size - 1).clamp(min=1)
    low = source.floor()
    offsets = torch.arange(2, device=index.device)
    taps = (low.long()[:, None] + offsets).clamp(0, side - 1)
    weights = (1 - (source[:, None] - low[:, None] - offsets).abs()).clamp(min=0)
    return taps, weights


def _layer_spec() -> TransformerLayerSubmodules:
    return TransformerLayerSubmodules(
        input_layernorm=WrappedTorchNorm,
        self_attention=ModuleSpec(
            module=SelfAttention,
            params={"attn_mask_type": AttnMaskType.no_mask},
            submodules=SelfAttentionSubmodules(
                linear_qkv=ColumnParallelLinear,
                core_attention=PackedAttention,
                linear_proj=RowParallelLinear,
            ),
        ),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=WrappedTorchNorm,
        mlp=ModuleSpec(
            module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        ),
        mlp_bda=get_bias_dropout_add,
    )
