"""A tiny stock GPTModel of megatron-core, to test what surrounds a model without ours.

Its weights are drawn from their global names, so that every layout begins with the same model.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from megatron_qwen3vl.config.schema import LearningRateScale, OptimizerConfig
from megatron_qwen3vl.parallel.groups import Groups
from megatron_qwen3vl.parallel.layout import Layout

VOCAB, TOKENS, HIDDEN = 64, 16, 32


class RMSNorm(torch.nn.Module):
    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(hidden, (hidden.shape[-1],), self.weight, self.eps)


class Stock(MegatronModule):
    """Stands where Qwen3VL stands: its parameters are called ``language.…``."""

    def __init__(self, config: TransformerConfig, language: GPTModel) -> None:
        super().__init__(config)
        self.language = language
        self.pre_process, self.post_process = language.pre_process, language.post_process
        self.share_embeddings_and_output_weights = language.share_embeddings_and_output_weights
        self.vp_stage = language.vp_stage
        self.model_type = ModelType.encoder_or_decoder

    def shared_embedding_or_output_weight(self) -> torch.Tensor:
        return self.language.shared_embedding_or_output_weight()

    def set_input_tensor(self, tensor: torch.Tensor) -> None:
        self.language.set_input_tensor(tensor)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(ids.shape[1]).expand(ids.shape[0], -1)
        return self.language(ids, positions, None, labels=ids)


@dataclass(frozen=True)
class Shape:
    experts: bool = False
    bfloat16: bool = False
    tied: bool = True
    trainable: str = ""  # a regular expression on parameter names; empty trains everything


def build(layout: Layout, shape: Shape) -> list[DistributedDataParallel]:
    config = _config(layout, shape)
    spec = get_gpt_layer_local_spec(num_experts=config.num_moe_experts, qk_layernorm=True, normalization="RMSNorm")
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
    attention = spec.submodules.self_attention.submodules
    attention.q_layernorm = attention.k_layernorm = RMSNorm
    chunks = []
    for stage in range(layout.vpp):
        virtual = stage if layout.vpp > 1 else None
        layers = [spec] * get_num_layers_to_build(config, vp_stage=virtual)
        language = GPTModel(
            config,
            TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm),
            vocab_size=VOCAB,
            max_sequence_length=TOKENS,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=virtual),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=virtual),
            share_embeddings_and_output_weights=shape.tied,
            position_embedding_type="rope",
            vp_stage=virtual,
        )
        chunk = Stock(config, language)
        _draw(chunk, layout)
        for name, parameter in chunk.named_parameters():
            parameter.requires_grad_(re.search(shape.trainable, name) is not None)
        wrapped = Float16Module(config, chunk) if shape.bfloat16 else chunk
        settings = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
        chunks.append(DistributedDataParallel(config, settings, wrapped))
    return chunks


def train(chunks: list[DistributedDataParallel], groups: Groups, number: int) -> None:
    """Gradients of step ``number`` over a global batch of 8 rows that every layout shares out alike; no update."""
    rows = torch.randint(0, VOCAB, (8, 1, TOKENS), generator=torch.Generator().manual_seed(number))
    own = list(rows.split(8 // groups.dp_size)[groups.dp_rank])
    for chunk in chunks:
        chunk.zero_grad_buffer()

    def step(data: Iterator[torch.Tensor], model: torch.nn.Module) -> tuple:
        output = model(next(data))
        return output, lambda losses: (losses.float().mean(), {})

    iterators = [iter(own) for _ in chunks]
    get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(own),
        seq_length=TOKENS,
        micro_batch_size=1,
        forward_only=False,
    )


def optimizer_config(**changes: float | str | bool | tuple | LearningRateScale) -> OptimizerConfig:
    values = {
        "lr": 1e-2,
        "min_lr": 1e-3,
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip_grad": 1.0,
        "schedule": "cosine",
        "warmup_steps": 4,
        "lr_scale": LearningRateScale(vision=1.0, merger=1.0, language=1.0),
        "carry": False,
    }
    return OptimizerConfig(**{**values, **changes})


def whole_layout(world_size: int, **axes: int | bool) -> Layout:
    sizes = {"tp": 1, "pp": 1, "vpp": 1, "cp": 1, "ep": 1, "etp": 1, "sp": False}
    return Layout(world_size=world_size, **{**sizes, **axes})


def _config(layout: Layout, shape: Shape) -> TransformerConfig:
    dtype = torch.bfloat16 if shape.bfloat16 else torch.float32
    return TransformerConfig(
        num_layers=4,
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_query_groups=2,
        ffn_hidden_size=64,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
        sequence_parallel=layout.sp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=shape.bfloat16,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        qk_layernorm=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        overlap_p2p_comm=layout.vpp > 1,
        batch_p2p_comm=layout.vpp == 1,
        num_moe_experts=4 if shape.experts else None,
        moe_ffn_hidden_size=16 if shape.experts else None,
        moe_router_topk=2,
        moe_router_dtype="fp32",
        moe_router_load_balancing_type="none",
        moe_token_dispatcher_type="alltoall",
        finalize_model_grads_func=finalize_model_grads,
    )


@torch.no_grad()
def _draw(chunk: Stock, layout: Layout) -> None:
    layers = chunk.language.decoder.layers
    offset = layers[0].layer_number - 1 if len(layers) else 0
    for name, parameter in chunk.named_parameters():
        name = re.sub(r"layers\.(\d+)", lambda found: f"layers.{int(found[1]) + offset}", name)
        if name.endswith("output_layer.weight") and chunk.share_embeddings_and_output_weights:
            name = "language.embedding.word_embeddings.weight"
        if parameter.dim() == 1:
            continue
        expert = re.search(r"local_experts\.(\d+)", name)
        if expert is not None:
            own = layers[0].mlp.local_expert_indices
            name = name.replace(expert[0], f"local_experts.{own[int(expert[1])]}")
        tensor_parallel = getattr(parameter, "tensor_model_parallel", False)
        size, rank = (
            (layout.etp, parallel_state.get_expert_tensor_parallel_rank())
            if expert
            else (
                layout.tp,
                parallel_state.get_tensor_model_parallel_rank(),
            )
        )
        shape = list(parameter.shape)
        dim = parameter.partition_dim if tensor_parallel else 0
        if tensor_parallel:
            shape[dim] *= size
        whole = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) * 0.05
        if not tensor_parallel:
            parameter.copy_(whole)
            continue
        parts = 2 if "linear_fc1" in name else 1  # [gate; up]: this rank's piece of each
        pieces = whole.chunk(size * parts, dim=dim)
        parameter.copy_(torch.cat(pieces[rank::size], dim=dim))
