"""Tiny random Qwen3 and SigLIP models of transformers, of the shapes of one of our models, on disk and as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from reference import ours_from_transformers, transformers_model

from megatron_qwen3vl.config.schema import ModelConfig
from megatron_qwen3vl.model.build import module_of

# the whole model or its vision part; a convolution on a fixed size, or NaFlex's linear patches
SIGLIPS = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")


def qwen3(model: ModelConfig, rope_theta: float = 1e6, seed: int = 1) -> torch.nn.Module:
    """transformers' Qwen3 with the text shape of ``model``; norms random too."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    text = model.text_config
    absent = {"rope_theta", "mrope_section", "max_position_embeddings"}
    experts = {"num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "router_aux_loss_coef"}
    chosen = vars(text).keys() - absent - (set() if text.num_experts else experts)
    settings = {name: vars(text)[name] for name in chosen}
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": rope_theta}
    settings["tie_word_embeddings"] = model.tie_word_embeddings
    torch.manual_seed(seed)
    if text.num_experts:
        return randomised(Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings)))
    return randomised(Qwen3ForCausalLM(Qwen3Config(**settings)))


def siglip(model: ModelConfig, kind: str, side: int, seed: int = 2) -> torch.nn.Module:
    """transformers' SigLIP with the vision shape of ``model`` and a position table of ``side`` x ``side``."""
    import transformers

    vision = model.vision_config
    settings: dict[str, Any] = {
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.num_heads,
        "patch_size": vision.patch_size,
    }
    family = "Siglip2" if kind.startswith("siglip2") else "Siglip"
    settings |= {"num_patches": side**2} if family == "Siglip2" else {"image_size": side * vision.patch_size}
    torch.manual_seed(seed)
    if kind.endswith("vision_model"):
        config = getattr(transformers, f"{family}VisionConfig")(**settings)
        return randomised(getattr(transformers, f"{family}VisionModel")(config))
    words = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
             "num_attention_heads": 1, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    config = getattr(transformers, f"{family}Config")(vision_config=settings, text_config=words)
    return randomised(getattr(transformers, f"{family}Model")(config))


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """No bias and no norm that could be forgotten without a trace."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return module.float().eval()


def vision_part(module: torch.nn.Module) -> Any:
    return module.vision_model if hasattr(module, "vision_model") else module


def save(module: torch.nn.Module, folder: Path, max_shard_size: str = "1GB") -> Path:
    module.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def expected_weights(model: ModelConfig, language: torch.nn.Module, siglip: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Our tensors but the mergers', by the parity tests' mapping from a Qwen3-VL put together here by hand."""
    tensors = dict(transformers_model(model).state_dict())
    for name, tensor in language.state_dict().items():
        tensors["lm_head.weight" if name == "lm_head.weight" else f"model.language_model.{name[6:]}"] = tensor
    vision, state = model.vision_config, vision_part(siglip).state_dict()
    patch, depth = vision.patch_size, vision.temporal_patch_size
    kernel = state["embeddings.patch_embedding.weight"]
    linear = kernel.dim() == 2
    if linear:
        kernel = kernel.reshape(vision.hidden_size, patch, patch, 3).permute(0, 3, 1, 2)
    tensors["model.visual.patch_embed.proj.weight"] = torch.stack([kernel / depth] * depth, dim=2)
    tensors["model.visual.patch_embed.proj.bias"] = state["embeddings.patch_embedding.bias"]
    table = state["embeddings.position_embedding.weight"]
    tensors["model.visual.pos_embed.weight"] = resized(table, round(vision.num_position_embeddings**0.5), linear)
    for n in range(vision.depth):
        theirs, block = f"encoder.layers.{n}", f"model.visual.blocks.{n}"
        for kind in ("weight", "bias"):
            qkv = [state[f"{theirs}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            tensors[f"{block}.attn.qkv.{kind}"] = torch.cat(qkv)
            for a, b in (("layer_norm1", "norm1"), ("layer_norm2", "norm2"), ("self_attn.out_proj", "attn.proj"),
                         ("mlp.fc1", "mlp.linear_fc1"), ("mlp.fc2", "mlp.linear_fc2")):  # fmt: skip
                tensors[f"{block}.{b}.{kind}"] = state[f"{theirs}.{a}.{kind}"]
    ours = ours_from_transformers(tensors, model)
    return {name: tensor.detach().clone() for name, tensor in ours.items() if module_of(name) != "merger"}


def resized(table: torch.Tensor, side: int, antialiased: bool) -> torch.Tensor:
    """A square table of another size, as transformers' two models resize theirs."""
    old = round(len(table) ** 0.5)
    grid = table.T.reshape(1, -1, old, old)
    mode = "bilinear" if antialiased else "bicubic"
    return F.interpolate(grid, (side, side), mode=mode, align_corners=False, antialias=antialiased).flatten(2)[0].T
