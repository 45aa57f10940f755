"""The shape of a run that begins from two models: Qwen3's and SigLIP-2's ``config.json`` -> ``ModelConfig``.

What the two cannot say comes from the chosen ``model``: the mergers' and DeepStack's facts, the position table's size,
MRoPE's sections, the ids of the vision tokens, the longest sequence.

Key names and defaults: ``transformers/models/qwen3/configuration_qwen3.py``, ``qwen3_moe``, ``siglip`` and ``siglip2``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_qwen3vl.config.schema import ModelConfig, TextConfig, VisionConfig
from megatron_qwen3vl.convert.config import read_text
from megatron_qwen3vl.convert.keys import Keys, read_tree
from megatron_qwen3vl.convert.source_layout import CONFIG_FILE
from megatron_qwen3vl.errors import UserError

QWEN3, QWEN3_MOE = "qwen3", "qwen3_moe"
# what transformers takes for an absent key, where that is not what read_text takes
_QWEN3_DEFAULTS: dict[str, dict[str, Any]] = {QWEN3: {"head_dim": 128}, QWEN3_MOE: {"norm_topk_prob": False}}
# model_type -> whether the vision model is a section of it, and whether it is the one of any size (NaFlex)
_SIGLIP = {
    "siglip": (True, False),
    "siglip_vision_model": (False, False),
    "siglip2": (True, True),
    "siglip2_vision_model": (False, True),
}
_SIGLIP_DEFAULTS: dict[str, Any] = {  # published files name only what differs from these
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "num_patches": 256,
}


@dataclass(frozen=True)
class Siglip:
    """A SigLIP or SigLIP-2 vision model. ``linear_patches``: NaFlex's linear patch embedding, else a convolution."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    hidden_act: str
    position_side: int  # of the square position table
    linear_patches: bool


def compose_model(base: ModelConfig, language: Path, vision: Path, rope_theta: float | None) -> ModelConfig:
    """The model whose language part is Qwen3's and whose vision encoder is SigLIP's; the rest is ``base``'s.

    ``rope_theta`` None keeps Qwen3's rotary base. Raises UserError with every key of both files that is missing, wrong,
    or asks for what this model does not have, and when SigLIP's depth is not the one that ``base`` taps.
    """
    problems: list[str] = []
    text, tied = _read_qwen3(language, base, problems)
    siglip = _read_siglip(vision, problems)
    if siglip is not None and siglip.depth != base.vision_config.depth:
        taps = list(base.vision_config.deepstack_visual_indexes)
        problems.append(
            f"run.init_vision={vision}: has {siglip.depth} layers, but model.vision_config.deepstack_visual_indexes="
            f"{taps} are for depth={base.vision_config.depth}; choose a model of that depth, or set both"
        )
    if problems or text is None or siglip is None:
        raise UserError(problems)
    if rope_theta is not None:
        text = replace(text, rope_theta=rope_theta)
    return replace(
        base,
        text_config=text,
        vision_config=_vision(base.vision_config, siglip, text.hidden_size),
        tie_word_embeddings=tied,
    )


def read_siglip(folder: Path) -> Siglip:
    """Raises UserError with every key that is missing or asks for what this model does not have."""
    problems: list[str] = []
    siglip = _read_siglip(folder, problems)
    if problems or siglip is None:
        raise UserError(problems)
    return siglip


def _read_qwen3(folder: Path, base: ModelConfig, problems: list[str]) -> tuple[TextConfig | None, bool]:
    """The language model and whether its head is tied; None with a problem more."""
    keys = _open(folder, tuple(_QWEN3_DEFAULTS), "run.init_language", "Qwen3", problems)
    if keys is None:
        return None, False
    kind = keys.tree["model_type"]
    tree = {**_QWEN3_DEFAULTS[kind], **keys.tree}
    if not tree.get("use_sliding_window"):
        tree["sliding_window"] = None  # transformers ignores it then
    keys = Keys(keys.path, tree, "", problems)
    keys.refuse_quantised()
    keys.same("layer_types", (None, ["full_attention"] * keys.get("num_hidden_layers", int)))
    theta = _rope_theta(keys)
    text = read_text(keys, kind == QWEN3_MOE, theta, base.text_config.mrope_section)
    tied = keys.get("tie_word_embeddings", bool, False)
    return replace(text, max_position_embeddings=base.text_config.max_position_embeddings), tied


def _rope_theta(keys: Keys) -> float:
    """transformers 5 has it in ``rope_parameters``; older files beside a ``rope_scaling`` of null."""
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(keys.tree.get(name), dict):
            rope = keys.section(name)
            rope.same("rope_type", ("default",))
            rope.same("type", ("default",))
            if "rope_theta" in rope.tree:
                return rope.get("rope_theta", float)
    return keys.get("rope_theta", float)


def _read_siglip(folder: Path, problems: list[str]) -> Siglip | None:
    keys = _open(folder, tuple(_SIGLIP), "run.init_vision", "SigLIP-2", problems)
    if keys is None:
        return None
    keys.refuse_quantised()
    is_section, naflex = _SIGLIP[keys.tree["model_type"]]
    if is_section:
        keys = keys.section("vision_config")
    keys = Keys(keys.path, {**_SIGLIP_DEFAULTS, **_without_null(keys.tree)}, keys.prefix, problems)
    keys.same("layer_norm_eps", (1e-6,))
    keys.same("hidden_act", ("gelu_pytorch_tanh",))
    patch = keys.get("patch_size", int)
    if naflex:
        positions = keys.get("num_patches", int)
        side = math.isqrt(positions)
        if side**2 != positions:
            keys.refuse("num_patches", "its position table must be square")
    else:
        side = keys.get("image_size", int) // max(1, patch)
    return Siglip(
        depth=keys.get("num_hidden_layers", int),
        hidden_size=keys.get("hidden_size", int),
        intermediate_size=keys.get("intermediate_size", int),
        num_heads=keys.get("num_attention_heads", int),
        in_channels=keys.get("num_channels", int),
        patch_size=patch,
        hidden_act=keys.get("hidden_act", str),
        position_side=side,
        linear_patches=naflex,
    )


def _vision(base: VisionConfig, siglip: Siglip, out_hidden_size: int) -> VisionConfig:
    return replace(
        base,
        depth=siglip.depth,
        hidden_size=siglip.hidden_size,
        intermediate_size=siglip.intermediate_size,
        num_heads=siglip.num_heads,
        in_channels=siglip.in_channels,
        patch_size=siglip.patch_size,
        hidden_act=siglip.hidden_act,
        out_hidden_size=out_hidden_size,
    )


def _open(folder: Path, kinds: tuple[str, ...], key: str, name: str, problems: list[str]) -> Keys | None:
    """The folder's config.json when its ``model_type`` is one of ``kinds``; else None with a problem more."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        problems.append(f"{key}={folder}: holds no {CONFIG_FILE}; give a Hugging Face folder of {name}")
        return None
    try:
        tree = read_tree(path.read_bytes(), str(path))
    except UserError as error:
        problems += error.problems
        return None
    if tree.get("model_type") not in kinds:
        found = tree.get("model_type")
        problems.append(f"{key}={folder}: model_type {found!r} is not {name}; give one of {', '.join(kinds)}")
        return None
    return Keys(str(path), tree, "", problems)


def _without_null(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if value is not None}
