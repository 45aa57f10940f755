"""The language model: megatron-core's GPTModel with interleaved MRoPE, DeepStack and a head in chunks.

    input_ids -> embed [T, 1, D] (whole sequence) -> qwen3vl.py places the visual features -> decoder -> final norm
        -> label positions only, in chunks: weight shard -> vocabulary-parallel cross entropy -> token losses

Under sequence parallelism each tensor rank decodes its own T / tp tokens; what enters is split with
``scatter_to_sequence_parallel_region``, what leaves is gathered before the head.

Shapes: T tokens, D width, V visual tokens, L DeepStack levels, N labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch.utils.checkpoint import checkpoint

from megatron_qwen3vl.batch import IGNORE, Batch
from megatron_qwen3vl.config.schema import ModelConfig
from megatron_qwen3vl.model.attention import PackedAttention, make_spans
from megatron_qwen3vl.model.context import make_context
from megatron_qwen3vl.model.experts import Experts
from megatron_qwen3vl.model.layer import Layer
from megatron_qwen3vl.model.norm import RMSNorm
from megatron_qwen3vl.model.rotary import mrope_angles
from megatron_qwen3vl.model.share import Cut


class DeepStackLayer(Layer):
    """A decoder layer that, among the first L, adds its DeepStack level to the visual tokens after it ran.

    ``context`` carries the levels [L, V, D] and ``context_mask`` their token indices [V]: both are explicit arguments
    of megatron-core's recompute function, so gradients survive it. After the last level there is nothing to carry.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_t1d, _ = super().forward(hidden_states=hidden_states, **kwargs)
        if context is None:
            return hidden_t1d, None
        level = self.layer_number - 1
        hidden_t1d = hidden_t1d.index_add(0, context_mask, context[level].unsqueeze(1))
        return hidden_t1d, context if level + 1 < len(context) else None


class LanguageModel(GPTModel):
    """One pipeline chunk of the decoder. The rotary embedding is ours, therefore ``position_embedding_type="none"``."""

    def __init__(
        self,
        config: TransformerConfig,
        model: ModelConfig,
        chunk_size: int,
        groups: ProcessGroupCollection,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None,
    ) -> None:
        super().__init__(
            config,
            _block_spec(config, vp_stage),
            vocab_size=model.text_config.vocab_size,
            max_sequence_length=model.text_config.max_position_embeddings,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=model.tie_word_embeddings,
            position_embedding_type="none",
            # Visual features are placed before the sequence is split.
            scatter_embedding_sequence_parallel=False,
            pg_collection=groups,
            vp_stage=vp_stage,
        )
        self.text = model.text_config
        self.chunk_size = chunk_size

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [T] -> [T, 1, D], the whole sequence on every tensor rank."""
        return self.embedding(input_ids=input_ids[None, :], position_ids=None)

    def decode(
        self,
        batch: Batch,
        hidden: torch.Tensor | None,
        levels: torch.Tensor | None,
        cut: Cut | None,
    ) -> torch.Tensor:
        """Run this chunk's layers.

        ``hidden`` [T, 1, D] and ``levels`` [L, V, D] (at ``batch.visual_index``) are for all tokens of ``batch``; both
        are None except on the first chunk. ``cut`` says what of a whole batch it is under context parallelism.
        Returns [T, 1, D], or this rank's part of it under sequence parallelism.
        """
        index: torch.Tensor | None = batch.visual_index
        padding_mask = batch.padding_mask
        if self.config.sequence_parallel:
            padding_mask = self._own_part(padding_mask)
            if hidden is not None:
                hidden = tensor_parallel.scatter_to_sequence_parallel_region(hidden, group=self.tp_group)
            if levels is not None:
                levels, index = self._own_levels(levels, batch.visual_index, len(padding_mask))
        if levels is None or not len(levels):
            levels = index = None
        angles = mrope_angles(batch.positions, self.text.head_dim, self.text.rope_theta, self.text.mrope_section)
        context = None if cut is None else make_context(cut.order, cut.pieces, self.cp_group)
        spans = make_spans(
            tuple(batch.cu_seqlens.diff().tolist()), angles.device, angles, self.config.params_dtype, context
        )
        return self.decoder(
            hidden_states=hidden,
            attention_mask=None,
            context=levels,
            context_mask=index,
            packed_seq_params=spans,
            padding_mask=padding_mask[None, :],
        )

    def token_losses(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy float32 [N] at the label positions of ``labels`` [T], in their order.

        The head runs over ``chunk_size`` labels at a time and again in the backward, so that T x vocabulary never
        stands in memory; the last chunk, with which the backward begins, keeps its logits. Without a label the result
        is empty and still gives zero gradients.
        """
        hidden_td = self._whole_sequence(hidden)
        positions = (labels != IGNORE).nonzero().squeeze(1)
        hidden_nd, labels_n = hidden_td[positions], labels[positions]
        weight = self.head_weight()
        *pieces, last = zip(hidden_nd.split(self.chunk_size), labels_n.split(self.chunk_size), strict=True)
        losses = [checkpoint(_head, *piece, weight, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
        return torch.cat([*losses, _head(*last, weight)])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [T, vocabulary] of every position; for tests and small inputs only."""
        shard = F.linear(self._whole_sequence(hidden), self.head_weight())
        return tensor_parallel.gather_from_tensor_model_parallel_region(shard, group=self.tp_group)

    def head_weight(self) -> torch.Tensor:
        """This rank's rows of the output matrix."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight

    def _whole_sequence(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T or T / tp, 1, D] -> [T, D]. Each rank's vocabulary shard gives a part of the gradient: it is summed."""
        if self.config.sequence_parallel:
            whole = tensor_parallel.gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=True, group=self.tp_group
            )
        else:
            whole = tensor_parallel.copy_to_tensor_model_parallel_region(hidden, group=self.tp_group)
        return whole.squeeze(1)

    def _own_part(self, per_token: torch.Tensor) -> torch.Tensor:
        """This tensor rank's part of something [T] without gradient."""
        return per_token.chunk(self.tp_group.size())[self.tp_group.rank()]

    def _own_levels(
        self, levels: torch.Tensor, visual_index: torch.Tensor, length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The levels' rows that fall into this tensor rank's part, and where they stand in it.

        Each rank uses different rows, so their gradients are summed over the ranks (the copy's backward).
        """
        start = self.tp_group.rank() * length
        own = ((visual_index >= start) & (visual_index < start + length)).nonzero().squeeze(1)
        levels = tensor_parallel.copy_to_tensor_model_parallel_region(levels, group=self.tp_group)
        return levels[:, own], visual_index[own] - start


def _head(hidden_nd: torch.Tensor, labels_n: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    logits_nv = F.linear(hidden_nd, weight).float()
    return tensor_parallel.vocab_parallel_cross_entropy(logits_nv, labels_n)


def _block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    num_layers = get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[_layer_spec(config)] * num_layers, layer_norm=RMSNorm)


def _layer_spec(config: TransformerConfig) -> ModuleSpec:
    if config.num_moe_experts:
        mlp = ModuleSpec(module=MoELayer, submodules=MoESubmodules(experts=ModuleSpec(module=Experts)))
    else:
        linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        mlp = ModuleSpec(module=MLP, submodules=linears)
    return ModuleSpec(
        module=DeepStackLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=PackedAttention,
                    linear_proj=RowParallelLinear,
                    q_layernorm=RMSNorm,
                    k_layernorm=RMSNorm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )
