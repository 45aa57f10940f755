"""The published Qwen3 and SigLIP-2 sizes, on the meta device: every tensor has its place in our six models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from beginning_cases import qwen3, siglip, vision_part
from reference import PLAIN, loss_config, read_model

from megatron_qwen3vl.config.check import model_problems
from megatron_qwen3vl.convert.beginning_config import compose_model, read_siglip
from megatron_qwen3vl.convert.beginning_names import is_left_out, language_table, vision_table
from megatron_qwen3vl.model.build import build_chunks, global_parameters, module_of
from megatron_qwen3vl.parallel.groups import Groups

COMMON = {"vocab_size": 151936, "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False,
          "max_position_embeddings": 40960, "rope_theta": 1000000, "rope_scaling": None, "sliding_window": None,
          "use_sliding_window": False, "num_key_value_heads": 8}  # fmt: skip
EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
           "mlp_only_layers": [], "router_aux_loss_coef": 0.001, "num_key_value_heads": 4}  # fmt: skip


def dense(hidden: int, ffn: int, layers: int, heads: int, tied: bool) -> dict[str, Any]:
    tree = {"model_type": "qwen3", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
            "num_attention_heads": heads, "tie_word_embeddings": tied}  # fmt: skip
    return COMMON | tree


def moe(hidden: int, ffn: int, layers: int, heads: int, expert: int) -> dict[str, Any]:
    tree = dense(hidden, ffn, layers, heads, False) | EXPERTS
    return tree | {"model_type": "qwen3_moe", "moe_intermediate_size": expert}


# our model -> the config.json of the Qwen3 that it begins from
QWEN3 = {
    "2b": dense(2048, 6144, 28, 16, True),  # Qwen3-1.7B
    "4b": dense(2560, 9728, 36, 32, True),
    "8b": dense(4096, 12288, 36, 32, False),
    "32b": dense(5120, 25600, 64, 64, False),
    "30b_a3b": moe(2048, 6144, 48, 32, 768),
    "235b_a22b": moe(4096, 12288, 94, 64, 1536),
}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
# config.json of google/siglip2-*: the defaults left out, as published; side of the position table
SIGLIP = {
    "large-patch16-256": ({"model_type": "siglip", "vision_config": LARGE | {"image_size": 256}}, 16),
    "large-patch16-512": ({"model_type": "siglip", "vision_config": LARGE | {"image_size": 512}}, 32),
    "so400m-patch16-256": ({"model_type": "siglip", "vision_config": SO400M | {"image_size": 256}}, 16),
    "so400m-patch16-384": ({"model_type": "siglip", "vision_config": SO400M | {"image_size": 384}}, 24),
    "so400m-patch16-naflex": ({"model_type": "siglip2", "vision_config": SO400M}, 16),
}


def folder(tree: dict[str, Any], path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(tree))
    return path


def vision_of(name: str) -> str:
    return "large-patch16-256" if name in ("2b", "4b") else "so400m-patch16-384"


@pytest.mark.parametrize("name", QWEN3)
def test_qwen3_sizes(name: str, tmp_path: Path, groups: Groups) -> None:
    """The shape is the published Qwen3-VL's but for what began with it; names and shapes are transformers'."""
    base = read_model(name)
    language = folder(QWEN3[name], tmp_path / "language")
    vision = folder(SIGLIP[vision_of(name)][0], tmp_path / "vision")
    model = compose_model(base, language, vision, 5e6)
    assert model == base
    assert compose_model(base, language, vision, None).text_config.rope_theta == 1e6
    assert list(model_problems(model)) == []

    with torch.device("meta"):
        theirs = {n: tuple(t.shape) for n, t in qwen3(model).state_dict().items()}
    if model.tie_word_embeddings:
        assert theirs.pop("lm_head.weight") == theirs["model.embed_tokens.weight"]
    experts = model.text_config.num_experts
    for stacked in [n for n in theirs if ".experts." in n]:  # as they are stored: one by one, gate and up apart
        count, rows, columns = theirs.pop(stacked)
        assert count == experts
        apart = {"gate_proj": rows // 2, "up_proj": rows // 2}
        kinds = apart if stacked.endswith("gate_up_proj") else {"down_proj": rows}
        for kind, height in kinds.items():
            head = stacked.rpartition(".")[0]
            theirs |= {f"{head}.{e}.{kind}.weight": (height, columns) for e in range(experts)}
    table = language_table(model)
    assert {n: t.shape for n, t in table.tensors.items()} == theirs

    # our own model: three layers and four experts stand for all, the ViT and the mergers are whole
    few = {"num_hidden_layers": 3, "num_experts": min(4, experts), "num_experts_per_tok": min(2, experts)}
    small = replace(model, text_config=replace(model.text_config, **few))
    with torch.device("meta"):
        chunks = build_chunks(small, PLAIN, groups, "float32", loss_config())
    rows = language_table(small).entries | vision_table(small, read_siglip(vision), "vision_model.").entries
    ours = {n: p.shape for c in chunks for n, p in global_parameters(c) if module_of(n) != "merger"}
    assert ours == {name: entry.rule.shape for name, entry in rows.items()}


@pytest.mark.parametrize("name", SIGLIP)
def test_siglip_sizes(name: str, tmp_path: Path) -> None:
    tree, side = SIGLIP[name]
    base = read_model("2b" if name.startswith("large") else "8b")
    read = read_siglip(folder(tree, tmp_path / "vision"))
    assert read.position_side == side and read.patch_size == 16
    with torch.device("meta"):
        module = siglip(base, tree["model_type"], side)
    theirs = {n: tuple(t.shape) for n, t in module.state_dict().items() if not is_left_out(n, "vision_model.")}
    assert {n: t.shape for n, t in vision_table(base, read, "vision_model.").tensors.items()} == theirs
    left = set(module.state_dict()) - theirs.keys()
    assert {n.split(".")[0] for n in left} == {"vision_model", "text_model", "logit_scale", "logit_bias"}
    assert not any("encoder" in n or "embeddings" in n for n in left if n.startswith("vision_model."))
    assert len(vision_part(module).encoder.layers) == read.depth
