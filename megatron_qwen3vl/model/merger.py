"""Mergers: fold each 2 x 2 block of patches into one visual token of the language model's width.

    [P, D] -> norm -> [P / 4, 4 D] -> fc1 -> exact GELU -> fc2 -> [V, out]        (main: normalises before the fold)
    [P, D] -> [P / 4, 4 D] -> norm -> fc1 -> exact GELU -> fc2 -> [V, out]        (DeepStack: after the fold)

Shapes: P patches, D width of the ViT, V visual tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import sharded_state_dict_default

from megatron_qwen3vl.config.schema import VisionConfig


class Merger(MegatronModule):
    """``fold_first`` is what tells a DeepStack merger from the main one: where the norm stands."""

    def __init__(
        self, config: TransformerConfig, vision: VisionConfig, fold_first: bool, groups: ProcessGroupCollection
    ) -> None:
        super().__init__(config)
        self.tp_group = groups.tp
        self.fold_first = fold_first
        self.folded_size = vision.hidden_size * vision.spatial_merge_size**2
        self.norm = torch.nn.LayerNorm(self.folded_size if fold_first else vision.hidden_size, eps=1e-6)
        self.linear_fc1 = ColumnParallelLinear(
            self.folded_size,
            self.folded_size,
            config=config,
            init_method=config.init_method,
            bias=True,
            gather_output=False,
            tp_group=groups.tp,
        )
        self.linear_fc2 = RowParallelLinear(
            self.folded_size,
            vision.out_hidden_size,
            config=config,
            init_method=config.output_layer_init_method,
            bias=True,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=groups.tp,
        )

    def forward(self, hidden_pd: torch.Tensor) -> torch.Tensor:
        """Patches in merge-block order [P, D] -> visual tokens [V, out]."""
        if self.fold_first:
            folded_vf = self.norm(hidden_pd.reshape(-1, self.folded_size))
        else:
            folded_vf = self.norm(hidden_pd).reshape(-1, self.folded_size)
        # megatron-core's linear layers want [sequence, batch, width].
        inner_v1f, _ = self.linear_fc1(folded_vf.unsqueeze(1))
        out_v1d, _ = self.linear_fc2(F.gelu(inner_v1f))
        return out_v1d.squeeze(1)


class ShardedModuleList(torch.nn.ModuleList):
    """A ModuleList whose tensor-parallel members reach the checkpoint as what they are, not as replicas."""

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> ShardedStateDict:
        shards: ShardedStateDict = {}
        for index, module in enumerate(self):
            shards.update(sharded_state_dict_default(module, f"{prefix}{index}.", sharded_offsets, metadata))
        return shards
