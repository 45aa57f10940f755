"""Hugging Face's ``config.json`` <-> ``ModelConfig``, without transformers.

Key names: ``transformers/models/qwen3_vl/configuration_qwen3_vl.py`` and ``qwen3_vl_moe``. transformers 5 writes
``rope_parameters`` and ``num_local_experts``, 4.57 and the published files ``rope_theta``, ``rope_scaling`` and
``num_experts``: both are read; the older spelling, which both versions and vLLM read, is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_qwen3vl.config.schema import ModelConfig, TextConfig, VisionConfig
from megatron_qwen3vl.convert.keys import Keys, read_tree
from megatron_qwen3vl.convert.source_layout import CONFIG_FILE
from megatron_qwen3vl.errors import UserError

DENSE, MOE = "qwen3_vl", "qwen3_vl_moe"
ARCHITECTURES = {DENSE: "Qwen3VLForConditionalGeneration", MOE: "Qwen3VLMoeForConditionalGeneration"}
# transformers' vision rotary base where config.json is silent (Qwen3VLVisionRotaryEmbedding)
VISION_ROPE_THETA = 10000.0
# keys -> the only values that the model can be built with; a key that is absent means the first of them
_FIXED_TEXT: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
    "norm_topk_prob": (True,),
    "partial_rotary_factor": (1.0, None),
    "sliding_window": (None,),
}


def read_config(folder: Path) -> ModelConfig:
    """The model that ``folder/config.json`` describes.

    Raises UserError with every key that is missing, has the wrong type, or asks for what this model does not have.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{path}: missing; give a Hugging Face folder of Qwen3-VL or Qwen3-VL-MoE")
    return parse_config(path.read_bytes(), str(path))


def parse_config(content: bytes, path: str) -> ModelConfig:
    """The same for a config.json in memory; ``path`` is its name in messages."""
    keys = Keys(path, read_tree(content, path), "", [])
    kind = keys.get("model_type", str)
    if kind not in ARCHITECTURES:
        keys.problems = [f"{path}: model_type {kind!r}; only {DENSE} and {MOE} can be converted"]
        raise UserError(keys.problems)
    keys.refuse_quantised()
    model = ModelConfig(
        text_config=_text(keys.section("text_config"), kind == MOE),
        vision_config=_vision(keys.section("vision_config")),
        # transformers ties by the top level only, and not by default
        tie_word_embeddings=keys.get("tie_word_embeddings", bool, False),
        image_token_id=keys.get("image_token_id", int),
        video_token_id=keys.get("video_token_id", int),
        vision_start_token_id=keys.get("vision_start_token_id", int),
        vision_end_token_id=keys.get("vision_end_token_id", int),
    )
    if keys.problems:
        raise UserError(keys.problems)
    return model


def to_hf_config(model: ModelConfig, dtype: str) -> dict[str, Any]:
    """A ``config.json`` for transformers 4.57 and newer and for vLLM; ``dtype`` is float32 or bfloat16."""
    kind = MOE if model.text_config.num_experts else DENSE
    return {
        "architectures": [ARCHITECTURES[kind]],
        "dtype": dtype,
        "image_token_id": model.image_token_id,
        "model_type": kind,
        "text_config": _text_tree(model.text_config, kind, dtype, model.tie_word_embeddings),
        "tie_word_embeddings": model.tie_word_embeddings,
        "video_token_id": model.video_token_id,
        "vision_config": _vision_tree(model.vision_config, kind, dtype),
        "vision_end_token_id": model.vision_end_token_id,
        "vision_start_token_id": model.vision_start_token_id,
    }


def set_dtype(content: bytes, dtype: str) -> bytes:
    """A config.json with its type set to ``dtype``; the same bytes where it already says so."""
    tree = json.loads(content)
    changed = _set_dtype(tree, dtype)
    return (json.dumps(tree, indent=2) + "\n").encode() if changed else content


def _set_dtype(tree: dict[str, Any], dtype: str) -> bool:
    changed = False
    for key, value in tree.items():
        if isinstance(value, dict):
            changed |= _set_dtype(value, dtype)
        elif key in ("dtype", "torch_dtype") and isinstance(value, str) and value != dtype:
            tree[key], changed = dtype, True
    return changed


def _text(keys: Keys, moe: bool) -> TextConfig:
    name = "rope_parameters" if isinstance(keys.tree.get("rope_parameters"), dict) else "rope_scaling"
    rope = keys.section(name)
    rope.same("rope_type", ("default",))
    rope.same("type", ("default", "mrope"))
    rope.same("mrope_interleaved", (True,))
    theta = rope if "rope_theta" in rope.tree else keys
    return read_text(keys, moe, theta.get("rope_theta", float), rope.integers("mrope_section"))


def read_text(keys: Keys, moe: bool, theta: float, section: tuple[int, ...]) -> TextConfig:
    """The language model of ``keys``' section; Qwen3's own config.json has the same names."""
    for key, allowed in _FIXED_TEXT.items():
        keys.same(key, allowed)
    heads = keys.get("num_attention_heads", int)
    experts = "num_local_experts" if "num_local_experts" in keys.tree else "num_experts"
    hidden = keys.get("hidden_size", int)
    return TextConfig(
        vocab_size=keys.get("vocab_size", int),
        hidden_size=hidden,
        intermediate_size=keys.get("intermediate_size", int),
        num_hidden_layers=keys.get("num_hidden_layers", int),
        num_attention_heads=heads,
        num_key_value_heads=keys.get("num_key_value_heads", int, heads),
        head_dim=keys.get("head_dim", int, hidden // heads if heads else 0),
        hidden_act=keys.get("hidden_act", str),
        rms_norm_eps=keys.get("rms_norm_eps", float),
        max_position_embeddings=keys.get("max_position_embeddings", int),
        initializer_range=keys.get("initializer_range", float, 0.02),
        rope_theta=theta,
        mrope_section=section,
        num_experts=keys.get(experts, int) if moe else 0,
        num_experts_per_tok=keys.get("num_experts_per_tok", int) if moe else 0,
        moe_intermediate_size=keys.get("moe_intermediate_size", int) if moe else 0,
        norm_topk_prob=True,
        router_aux_loss_coef=keys.get("router_aux_loss_coef", float, 0.001) if moe else 0.0,
    )


def _vision(keys: Keys) -> VisionConfig:
    theta = VISION_ROPE_THETA
    if isinstance(keys.tree.get("rope_parameters"), dict):
        rope = keys.section("rope_parameters")
        rope.same("rope_type", ("axial", "default"))
        theta = rope.get("rope_theta", float, theta)
    return VisionConfig(
        depth=keys.get("depth", int),
        hidden_size=keys.get("hidden_size", int),
        intermediate_size=keys.get("intermediate_size", int),
        num_heads=keys.get("num_heads", int),
        in_channels=keys.get("in_channels", int, 3),
        patch_size=keys.get("patch_size", int),
        temporal_patch_size=keys.get("temporal_patch_size", int),
        spatial_merge_size=keys.get("spatial_merge_size", int),
        out_hidden_size=keys.get("out_hidden_size", int),
        num_position_embeddings=keys.get("num_position_embeddings", int),
        deepstack_visual_indexes=keys.integers("deepstack_visual_indexes"),
        hidden_act=keys.get("hidden_act", str),
        initializer_range=keys.get("initializer_range", float, 0.02),
        rope_theta=theta,
    )


def _text_tree(text: TextConfig, kind: str, dtype: str, tied: bool) -> dict[str, Any]:
    tree = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": dtype,
        "head_dim": text.head_dim,
        "hidden_act": text.hidden_act,
        "hidden_size": text.hidden_size,
        "initializer_range": text.initializer_range,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "model_type": f"{kind}_text",
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": list(text.mrope_section),
            "rope_type": "default",
        },
        "rope_theta": text.rope_theta,
        # vLLM reads it here, transformers at the top level
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": text.vocab_size,
    }
    if kind == MOE:
        tree |= {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": text.moe_intermediate_size,
            "norm_topk_prob": text.norm_topk_prob,
            "num_experts": text.num_experts,
            "num_experts_per_tok": text.num_experts_per_tok,
            "router_aux_loss_coef": text.router_aux_loss_coef,
        }
    return tree


def _vision_tree(vision: VisionConfig, kind: str, dtype: str) -> dict[str, Any]:
    rope = {"rope_theta": vision.rope_theta, "rope_type": "axial"}
    return {
        # absent in the published files, and unknown to transformers 4
        **({"rope_parameters": rope} if vision.rope_theta != VISION_ROPE_THETA else {}),
        "deepstack_visual_indexes": list(vision.deepstack_visual_indexes),
        "depth": vision.depth,
        "dtype": dtype,
        "hidden_act": vision.hidden_act,
        "hidden_size": vision.hidden_size,
        "in_channels": vision.in_channels,
        "initializer_range": vision.initializer_range,
        "intermediate_size": vision.intermediate_size,
        "model_type": kind,  # the published spelling; transformers 5 writes "<kind>_vision" and reads both
        "num_heads": vision.num_heads,
        "num_position_embeddings": vision.num_position_embeddings,
        "out_hidden_size": vision.out_hidden_size,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
