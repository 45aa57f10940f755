"""From our configuration to megatron-core's: one ``TransformerConfig`` for the language model, one for the ViT.

Every number comes from the model section (the names of Hugging Face's config.json) and the layout; this is the only
place that knows megatron-core's field names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_qwen3vl.config.schema import LossConfig, ModelConfig, ParallelConfig
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.model.flops import pipeline_costs
from megatron_qwen3vl.parallel.layout import Layout
from megatron_qwen3vl.parallel.pipeline import choose_split, split_problems

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


def transformer_config(
    model: ModelConfig, parallel: ParallelConfig, dtype: str, loss: LossConfig
) -> tuple[TransformerConfig, TransformerConfig]:
    """(language, vision) configurations of megatron-core.

    The ViT lives on the first pipeline rank and sees whole images: it keeps tensor parallelism and nothing else.
    Raises UserError for an activation that no Qwen3-VL uses.
    """
    return _language(model, parallel, dtype, loss), _vision(model, parallel, dtype)


def aux_loss_coefficient(model: ModelConfig, loss: LossConfig) -> float:
    """The coefficient in force: ``loss.aux_coefficient``, else the model's own."""
    return model.text_config.router_aux_loss_coef if loss.aux_coefficient is None else loss.aux_coefficient


def pipeline_layers(model: ModelConfig, parallel: ParallelConfig) -> tuple[int, ...]:
    """Language layers of each pipeline part: ``parallel.pipeline_layers``, else the split of least cost.

    Raises UserError for a split that cannot be.
    """
    layout = _layout(parallel)
    shape, given = layout.shape(model), layout.pipeline_layers
    key = "parallel.pipeline_layers"
    problems = list(split_problems(shape, given, f"parallel.pp={parallel.pp}", key, key))
    if problems:
        raise UserError(problems)
    return choose_split(shape, pipeline_costs(model, parallel.visual_share)) if given is None else given


def _layout(parallel: ParallelConfig) -> Layout:
    """Without data parallelism, which no part of the model's configuration depends on."""
    return Layout.from_config(parallel, parallel.tp * parallel.pp * parallel.cp)


def _parts(layers: Sequence[int]) -> list[list[str]]:
    """The split in megatron-core's words."""
    parts = [["decoder"] * count for count in layers]
    return [["embedding", *parts[0]], *parts[1:-1], [*parts[-1], "loss"]]


def _language(model: ModelConfig, parallel: ParallelConfig, dtype: str, loss: LossConfig) -> TransformerConfig:
    text = model.text_config
    interleaved = parallel.vpp > 1
    layout = _layout(parallel)
    exchanges_heads = layout.exchanges_heads(text.num_attention_heads, text.num_key_value_heads)
    return TransformerConfig(
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        num_attention_heads=text.num_attention_heads,
        num_query_groups=text.num_key_value_heads,
        kv_channels=text.head_dim,
        # The experts' width, where there are experts: no layer is dense then.
        ffn_hidden_size=text.moe_intermediate_size if text.num_experts else text.intermediate_size,
        gated_linear_unit=True,
        activation_func=_activation("model.text_config.hidden_act", text.hidden_act),
        normalization="RMSNorm",
        layernorm_epsilon=text.rms_norm_eps,
        qk_layernorm=True,
        add_bias_linear=False,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.vpp if interleaved else None,
        pipeline_model_parallel_layout=_parts(pipeline_layers(model, parallel)) if parallel.pp > 1 else None,
        context_parallel_size=parallel.cp,
        # The names of Transformer Engine's attention for the same two exchanges.
        cp_comm_type="a2a" if exchanges_heads else "all_gather",
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=parallel.etp,
        sequence_parallel=parallel.sp and parallel.tp > 1,
        # Interleaved pipelines: batched messages between two ranks would cross.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        **_recompute(parallel.recompute),
        **(_experts(model, loss) if text.num_experts else {}),
        **_common(parallel, dtype),
    )


def _experts(model: ModelConfig, loss: LossConfig) -> dict[str, Any]:
    text = model.text_config
    coefficient = aux_loss_coefficient(model, loss)
    return {
        "num_moe_experts": text.num_experts,
        "moe_ffn_hidden_size": text.moe_intermediate_size,
        "moe_router_topk": text.num_experts_per_tok,
        "moe_router_score_function": "softmax",
        # Softmax over the chosen logits equals softmax over all, top-k, renormalised.
        "moe_router_pre_softmax": not text.norm_topk_prob,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss" if coefficient > 0 else "none",
        "moe_aux_loss_coeff": coefficient,
        "moe_token_dispatcher_type": "alltoall",
    }


def _vision(model: ModelConfig, parallel: ParallelConfig, dtype: str) -> TransformerConfig:
    vision = model.vision_config
    return TransformerConfig(
        num_layers=vision.depth,
        hidden_size=vision.hidden_size,
        num_attention_heads=vision.num_heads,
        kv_channels=vision.hidden_size // vision.num_heads,
        ffn_hidden_size=vision.intermediate_size,
        activation_func=_activation("model.vision_config.hidden_act", vision.hidden_act),
        normalization="LayerNorm",
        layernorm_epsilon=1e-6,
        add_bias_linear=True,
        **_recompute(parallel.vision_recompute),
        **_common(parallel, dtype),
    )


def _common(parallel: ParallelConfig, dtype: str) -> dict[str, Any]:
    return {
        "tensor_model_parallel_size": parallel.tp,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "params_dtype": DTYPES[dtype],
        "pipeline_dtype": DTYPES[dtype],
        "bf16": dtype == "bfloat16",
        # Weights are made on the default device of build.py (cpu, cuda or meta) and filled there.
        "use_cpu_initialization": True,
        "init_method": leave_unset,
        "output_layer_init_method": leave_unset,
        "embedding_init_method": leave_unset,
        "gradient_accumulation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
    }


def _recompute(granularity: str) -> dict[str, Any]:
    if granularity == "none":
        return {}
    if granularity == "selective":
        # What it recomputes is layer.py's matter, none of megatron-core's own modules.
        return {"recompute_granularity": "selective", "recompute_modules": []}
    return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def _activation(key: str, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if name not in ACTIVATIONS:
        raise UserError(f"{key}: unknown activation {name!r}; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def leave_unset(tensor: torch.Tensor) -> torch.Tensor:
    """megatron-core draws by layout and device; build.initialize fills the weights by name instead."""
    return tensor
