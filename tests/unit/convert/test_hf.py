"""Hugging Face -> ours -> Hugging Face, against transformers itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from convert_cases import DTYPES, SIDE_FILES, Saved, empty_model, save_reference
from reference import ours_from_transformers, standard_cases, transformers_inputs
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText

from megatron_qwen3vl.convert.config import read_config
from megatron_qwen3vl.convert.hf import export_hf, load_hf
from megatron_qwen3vl.convert.source_layout import read_side_files
from megatron_qwen3vl.model.build import global_parameters
from megatron_qwen3vl.parallel.groups import Groups


def tensors_of(folder: Path) -> dict[str, tuple[str, torch.Tensor]]:
    """Name -> (file, tensor), read by the safetensors library."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            found |= {name: (path.name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    return found


def assert_same_weights(out: Path, source: Path) -> None:
    made, given = tensors_of(out), tensors_of(source)
    assert made.keys() == given.keys()
    for name, (file, tensor) in given.items():
        assert made[name][0] == file and made[name][1].dtype == tensor.dtype, name
        assert torch.equal(made[name][1], tensor), name


def test_config_is_read_as_transformers_means_it(saved: Saved) -> None:
    assert read_config(saved.folder) == saved.model


def test_every_parameter_is_loaded(saved: Saved, groups: Groups, references: dict) -> None:
    """Against the mapping of the parity tests, which is written apart from ours."""
    chunks = empty_model(saved.model, groups, saved.dtype)
    load_hf(chunks, saved.model, saved.folder, groups)
    stored = {name: tensor for name, (_, tensor) in tensors_of(saved.folder).items()}
    expected = ours_from_transformers(stored, saved.model)
    loaded = {name: parameter for chunk in chunks for name, parameter in global_parameters(chunk)}
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name].data, tensor.to(loaded[name].dtype)), name


def test_round_trip_is_exact(saved: Saved, groups: Groups, tmp_path: Path) -> None:
    chunks = empty_model(saved.model, groups, saved.dtype)
    load_hf(chunks, saved.model, saved.folder, groups)
    out = tmp_path / "out"
    export_hf(chunks, saved.model, None, read_side_files(saved.folder), out)
    assert {p.name for p in out.iterdir()} == {p.name for p in saved.folder.iterdir()}
    assert not list(tmp_path.glob(".*"))
    assert_same_weights(out, saved.folder)
    for path in saved.folder.iterdir():
        # the weights' files too: the same tensors in the same order after the same header
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_export_loads_and_generates_the_same(saved: Saved, groups: Groups, references: dict, tmp_path: Path) -> None:
    """From the model alone: our own config.json, files and order of experts."""
    chunks = empty_model(saved.model, groups, saved.dtype)
    load_hf(chunks, saved.model, saved.folder, groups)
    out = tmp_path / "out"
    export_hf(chunks, saved.model, None, {}, out, max_shard_bytes=100_000)
    assert (out / "model.safetensors.index.json").is_file()
    shards = sorted(out.glob("*.safetensors"))
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors" and len(shards) > 2
    assert all(path.stat().st_size < 110_000 or len(list(_names(path))) == 1 for path in shards)
    loaded, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in info), info
    assert loaded.dtype == DTYPES[saved.dtype]
    original = AutoModelForImageTextToText.from_pretrained(saved.folder)
    assert type(loaded) is type(original)
    own, theirs = loaded.state_dict(), original.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    case = next(c for c in standard_cases(saved.model) if c.sample.key == "images")
    tokens = [m.generate(**_inputs(case, m), max_new_tokens=8, do_sample=False) for m in (original, loaded)]
    assert torch.equal(*tokens) and tokens[0].shape[1] == len(case.sample.input_ids) + 8


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def _inputs(case: object, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in transformers_inputs(case).items()}


def test_own_config_means_the_same_to_transformers(saved: Saved, groups: Groups, tmp_path: Path) -> None:
    chunks = empty_model(saved.model, groups, saved.dtype)
    load_hf(chunks, saved.model, saved.folder, groups)
    export_hf(chunks, saved.model, None, {}, tmp_path / "out")
    assert read_config(tmp_path / "out") == saved.model
    own, theirs = (AutoConfig.from_pretrained(f).to_dict() for f in (tmp_path / "out", saved.folder))
    for tree in (own, theirs):
        tree.pop("_name_or_path", None)
        tree.pop("transformers_version")
        # transformers reads the tie from the top level; "unset" and "the parent's" are spelled differently below it
        for section in ("text_config", "vision_config"):
            for key in ("tie_word_embeddings", "dtype", "model_type", "norm_topk_prob", "_name_or_path"):
                tree[section].pop(key, None)
    assert own == theirs


def test_published_order_of_experts(references: dict, groups: Groups, tmp_path: Path) -> None:
    """The published checkpoints hold experts as [E, in, out]; they are read, and written again in that order."""
    source = save_reference(references["moe"], tmp_path / "source", "float32")
    model, published = read_config(source), tmp_path / "published"
    shutil.copytree(source, published)
    from safetensors.torch import save_file

    flipped = {
        name: tensor.transpose(1, 2).contiguous() if ".mlp.experts." in name else tensor
        for name, (_, tensor) in tensors_of(source).items()
    }
    save_file(flipped, published / "model.safetensors", metadata={"format": "pt"})
    chunks = empty_model(model, groups, "float32")
    load_hf(chunks, model, published, groups)
    expected = ours_from_transformers({n: t for n, (_, t) in tensors_of(source).items()}, model)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in global_parameters(chunks[0]))
    export_hf(chunks, model, None, read_side_files(published), tmp_path / "again")
    assert_same_weights(tmp_path / "again", published)
    # a model that came from nowhere is written in the published order, which vLLM wants
    export_hf(chunks, model, None, {}, tmp_path / "own")
    assert_same_weights(tmp_path / "own", published)


def test_tied_head_in_the_file(references: dict, groups: Groups, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = save_reference(references["dense_tied"], tmp_path / "source", "float32")
    model = read_config(source)
    tensors = {name: tensor for name, (_, tensor) in tensors_of(source).items()}
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    chunks = empty_model(model, groups, "float32")
    load_hf(chunks, model, source, groups)
    export_hf(chunks, model, None, read_side_files(source), tmp_path / "out")
    assert "lm_head.weight" not in tensors_of(tmp_path / "out")


@pytest.mark.parametrize(("stored", "wanted"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_casts(references: dict, groups: Groups, tmp_path: Path, stored: str, wanted: str) -> None:
    source = save_reference(references["dense_tied"], tmp_path / "source", stored)
    model = read_config(source)
    chunks = empty_model(model, groups, stored)
    load_hf(chunks, model, source, groups)
    export_hf(chunks, model, DTYPES[wanted], read_side_files(source), tmp_path / "out")
    for name, (_, tensor) in tensors_of(source).items():
        assert torch.equal(tensors_of(tmp_path / "out")[name][1], tensor.to(DTYPES[wanted]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == wanted
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out").dtype == DTYPES[wanted]
    for name, content in SIDE_FILES.items():
        assert (tmp_path / "out" / name).read_bytes() == content
