"""Damaged and foreign folders: one line that names the file, and the tensor or key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from convert_cases import config_of, empty_model, save_reference
from safetensors.torch import load_file, save_file

from megatron_qwen3vl.convert.config import read_config
from megatron_qwen3vl.convert.hf import export_hf, load_hf
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.parallel.groups import Groups

NORM = "model.language_model.norm.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"


def change(folder: Path, act: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    act(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing": (lambda f: change(f, lambda t: t.pop(NORM)), ["source", f"'{NORM}' is missing"]),
    "unexpected": (
        lambda f: change(f, lambda t: t.update(stray=torch.zeros(1))),
        ["model.safetensors", "'stray' is unexpected"],
    ),
    "shape": (
        lambda f: change(f, lambda t: t.update({NORM: torch.zeros(3)})),
        ["model.safetensors", NORM, "[3]", "[64]"],
    ),
    "other head": (
        lambda f: change(f, lambda t: t.update({"lm_head.weight": t[EMBEDDING] + 1})),
        ["model.safetensors", "'lm_head.weight' differs", "tie_word_embeddings"],
    ),
    "type": (
        lambda f: change(f, lambda t: t.update({NORM: torch.zeros(64, dtype=torch.int8)})),
        ["model.safetensors", NORM, "I8"],
    ),
    "cut in the values": (
        lambda f: cut(f, (f / "model.safetensors").stat().st_size - 1),
        ["model.safetensors", "cut short", "model.visual.pos_embed.weight"],
    ),
    "cut in the header": (lambda f: cut(f, 100), ["model.safetensors", "cut short"]),
    "empty file": (lambda f: cut(f, 0), ["model.safetensors", "not a safetensors file"]),
    "not safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"PK" * 500),
        ["model.safetensors", "not a safetensors file"],
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["source", "neither model.safetensors"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, references: dict, groups: Groups, tmp_path: Path) -> None:
    source = save_reference(references["dense_tied"], tmp_path / "source", "float32")
    act, expected = DAMAGES[damage]
    act(source)
    model = config_of("dense_tied")
    chunks = empty_model(model, groups, "float32")
    with pytest.raises(UserError) as raised:
        load_hf(chunks, model, source, groups)
    assert len(raised.value.problems) == 1
    assert all(word in raised.value.problems[0] for word in expected), raised.value.problems
    assert all(p.isnan().all() for p in chunks[0].parameters()), "nothing is loaded from a folder that does not fit"


def test_lost_and_lying_files_of_several(references: dict, groups: Groups, tmp_path: Path) -> None:
    source = save_reference(references["moe"], tmp_path / "source", "float32", "60KB")
    model = read_config(source)
    chunks = empty_model(model, groups, "float32")
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = content["weight_map"][NORM]
    held = (source / shard).read_bytes()
    (source / shard).unlink()
    with pytest.raises(UserError, match=f"{shard}: missing, but model.safetensors.index.json names it"):
        load_hf(chunks, model, source, groups)
    (source / shard).write_bytes(held)
    tensors = load_file(source / shard)
    save_file({n: t for n, t in tensors.items() if n != NORM}, source / shard)
    with pytest.raises(UserError, match=f"{shard}: no tensor '{NORM}'"):
        load_hf(chunks, model, source, groups)
    index.write_text("{")
    with pytest.raises(UserError, match=r"index.json: not a safetensors index"):
        load_hf(chunks, model, source, groups)


def test_another_model_is_told_in_few_lines(references: dict, groups: Groups, tmp_path: Path) -> None:
    source = save_reference(references["moe"], tmp_path / "source", "float32")
    model = config_of("dense_untied")
    with pytest.raises(UserError) as raised:
        load_hf(empty_model(model, groups, "float32"), model, source, groups)
    assert 2 < len(raised.value.problems) <= 9 and "more such tensors" in raised.value.problems[-1]


def test_failed_export_leaves_nothing(references: dict, groups: Groups, tmp_path: Path) -> None:
    model = config_of("dense_tied")
    with pytest.raises(IsADirectoryError):
        export_hf(empty_model(model, groups, "float32"), model, None, {"": b""}, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def edit(tree: dict, path: str, value: object) -> None:
    *sections, key = path.split(".")
    for section in sections:
        tree = tree[section]
    if value is None:
        tree.pop(key)
    else:
        tree[key] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "qwen2_5_vl"),
        ("text_config.hidden_size", None),
        ("text_config.hidden_size", "64"),
        ("text_config.attention_bias", True),
        ("text_config.decoder_sparse_step", 2),
        ("text_config.mlp_only_layers", [0]),
        ("text_config.norm_topk_prob", False),
        ("text_config.rope_parameters.rope_type", "yarn"),
        ("text_config.rope_parameters.mrope_interleaved", False),
        ("text_config.rope_parameters.rope_theta", None),
        ("text_config.rope_parameters.mrope_section", None),
        ("vision_config.patch_size", [16, 16]),
        ("vision_config.deepstack_visual_indexes", ["a"]),
        ("vision_config", None),
        ("image_token_id", True),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_config_keys_are_named(key: str, value: object, references: dict, tmp_path: Path) -> None:
    source = save_reference(references["moe"], tmp_path / "source", "float32")
    tree = json.loads((source / "config.json").read_text())
    edit(tree, key, value)
    (source / "config.json").write_text(json.dumps(tree))
    with pytest.raises(UserError) as raised:
        read_config(source)
    assert all("config.json" in problem for problem in raised.value.problems)
    assert any(key.split(".")[-1] in problem for problem in raised.value.problems), raised.value.problems


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json: missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: not JSON"):
        read_config(tmp_path)


def test_the_published_spelling(tmp_path: Path, references: dict) -> None:
    """rope_theta, rope_scaling, num_experts, vision model_type: as transformers 4.57 and the published files say it."""
    source = save_reference(references["moe"], tmp_path / "source", "float32")
    tree = json.loads((source / "config.json").read_text())
    text = tree["text_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "num_experts": text.pop("num_local_experts")}
    tree["vision_config"].pop("rope_parameters")
    tree["vision_config"]["model_type"] = "qwen3_vl_moe"
    (source / "config.json").write_text(json.dumps(tree))
    assert read_config(source) == config_of("moe")
