"""Qwen3 + SigLIP-2 -> our model: against transformers' own Qwen3 and SigLIP on text and on pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from beginning_cases import SIGLIPS, expected_weights, qwen3, save, siglip, vision_part
from convert_cases import config_of, empty_model
from reference import KINDS, PLAIN, Case, loss_config, make_batch, make_case
from safetensors.torch import load_file, save_file

from megatron_qwen3vl.config.schema import ModelConfig
from megatron_qwen3vl.convert.beginning import load_beginning
from megatron_qwen3vl.convert.beginning_config import compose_model
from megatron_qwen3vl.data.vision import make_patches
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.model.attention import make_spans
from megatron_qwen3vl.model.build import build_chunks, global_parameters, initialize, module_of
from megatron_qwen3vl.model.qwen3vl import Qwen3VL
from megatron_qwen3vl.model.vision import VisionEncoder, patch_coordinates
from megatron_qwen3vl.parallel.groups import Groups

SIDE = 6  # of our position table in reference.py's models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of Qwen3 and of SigLIP; the language models in several files."""
    base = tmp_path_factory.mktemp("beginning")
    made = {kind: save(qwen3(config_of(kind)), base / kind, "40KB") for kind in KINDS}
    return made | {kind: save(siglip(config_of("moe"), kind, 4), base / kind) for kind in SIGLIPS}


def begun(model: ModelConfig, language: Path, vision: Path, groups: Groups) -> Qwen3VL:
    (chunk,) = build_chunks(model, PLAIN, groups, "float32", loss_config())
    initialize([chunk], model, seed=5)
    load_beginning([chunk], model, language, vision, groups)
    return chunk


def relative(own: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((own - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rope_theta", [None, 5e6])
def test_language_logits_equal_qwen3(kind: str, rope_theta: float | None, folders: dict, groups: Groups) -> None:
    """On text of 60 tokens; with another rotary base, equal to a Qwen3 of that base."""
    base = config_of(kind)
    model = compose_model(base, folders[kind], folders["siglip"], rope_theta)
    assert model.text_config == replace(base.text_config, rope_theta=rope_theta or 1e6)
    assert model.tie_word_embeddings == base.tie_word_embeddings
    chunk = begun(model, folders[kind], folders["siglip"], groups)
    case = make_case("text", [("text", 60)], np.random.default_rng(0), model)
    positions = np.tile(np.arange(60, dtype=np.int32), (3, 1))
    case = Case(replace(case.sample, positions=positions), case.modality)
    with torch.no_grad():
        own = chunk.logits(make_batch(model, [case]))
        reference = qwen3(base, rope_theta or 1e6)
        theirs = reference(torch.from_numpy(case.sample.input_ids).long()[None]).logits[0]
    assert relative(own, theirs) <= 1e-5


def encode_without_rotary(vision: VisionEncoder, patches: torch.Tensor, grids: torch.Tensor) -> list[torch.Tensor]:
    """The encoder's own parts with all angles zero: hidden states after each layer."""
    config = vision.vision
    rows, columns, sizes = patch_coordinates(grids, config.spatial_merge_size, patches.device)
    angles = torch.zeros(len(patches), config.hidden_size // config.num_heads // 2)
    spans = make_spans(tuple(int(h * w) for _, h, w in grids), patches.device, angles, torch.float32)
    hidden = (vision.embed(patches) + vision.positions(rows, columns, sizes)).unsqueeze(1)
    states = []
    for layer in vision.layers:
        hidden = vision.run_layer(layer, hidden, spans)
        states.append(hidden.squeeze(1))
    return states


def siglip_states(model: torch.nn.Module, picture: np.ndarray, patch: int) -> list[torch.Tensor]:
    """transformers' hidden states after each layer, before the last norm: [patches row by row, width]."""
    part = vision_part(model)
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float() / 255 * 2 - 1
    if part.config.model_type.startswith("siglip2"):
        from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

        values = torch.from_numpy(convert_image_to_patches(pixels.numpy(), patch).copy())
        sizes = torch.tensor([[picture.shape[0] // patch, picture.shape[1] // patch]])
        hidden = part.embeddings(values[None], sizes)
    else:
        hidden = part.embeddings(pixels[None], interpolate_pos_encoding=True)
    states = []
    for layer in part.encoder.layers:
        hidden = layer(hidden, None)
        states.append(hidden[0])
    assert torch.equal(part.post_layernorm(states[-1]), part(**_inputs(part, pixels, patch)).last_hidden_state[0])
    return states


def _inputs(part: torch.nn.Module, pixels: torch.Tensor, patch: int) -> dict:
    if not part.config.model_type.startswith("siglip2"):
        return {"pixel_values": pixels[None], "interpolate_pos_encoding": True}
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    values = torch.from_numpy(convert_image_to_patches(pixels.numpy(), patch).copy())
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    mask = torch.ones(1, rows * columns, dtype=torch.int64)
    sizes = torch.tensor([[rows, columns]])
    return {"pixel_values": values[None], "pixel_attention_mask": mask, "spatial_shapes": sizes}


@pytest.mark.parametrize("kind", SIGLIPS)
@pytest.mark.parametrize("side", [4, 6, 8])
def test_vision_features_equal_siglip(kind: str, side: int, groups: Groups, folders: dict, tmp_path: Path) -> None:
    """A still picture of our table's size, its frame repeated: every layer's features, rotary angles zero, before the
    last norm. SigLIP's own table is smaller, as large, larger."""
    base = config_of("moe")
    reference = siglip(base, kind, side)
    vision = save(reference, tmp_path / "vision")
    model = compose_model(base, folders["moe"], vision, None)
    assert model.vision_config == base.vision_config
    chunk = begun(model, folders["moe"], vision, groups)
    patch = base.vision_config.patch_size
    picture = np.random.default_rng(1).integers(0, 256, (SIDE * patch, SIDE * patch, 3), dtype=np.uint8)
    grid = (1, SIDE, SIDE)
    patches = torch.from_numpy(make_patches([picture], grid, base.vision_config))
    rows, columns, _ = patch_coordinates(torch.tensor([grid]), 2, patches.device)
    with torch.no_grad():
        own = encode_without_rotary(chunk.vision, patches, torch.tensor([grid]))
        theirs = siglip_states(reference, picture, patch)
    assert len(own) == len(theirs) == base.vision_config.depth
    for mine, their in zip(own, theirs, strict=True):
        assert relative(mine, their[rows * SIDE + columns]) <= 1e-5


@pytest.mark.parametrize("kind", SIGLIPS)
def test_every_parameter_but_the_mergers(kind: str, folders: dict, groups: Groups) -> None:
    """Against a Qwen3-VL put together by hand under the parity tests' mapping; the mergers keep what they held."""
    base = config_of("moe")
    model = compose_model(base, folders["moe"], folders[kind], None)
    chunks = empty_model(model, groups, "float32")
    load_beginning(chunks, model, folders["moe"], folders[kind], groups)
    expected = expected_weights(model, qwen3(base), siglip(base, kind, 4))
    for name, parameter in global_parameters(chunks[0]):
        if module_of(name) == "merger":
            assert parameter.isnan().all(), name
        else:
            torch.testing.assert_close(parameter.data, expected[name], rtol=1e-6, atol=1e-7)


def test_bfloat16_is_cast_once(folders: dict, groups: Groups, tmp_path: Path) -> None:
    """bf16 folders into a float32 run: exact where nothing is computed, in float32 where the table is resized."""
    base = config_of("dense_tied")
    models = [qwen3(base).bfloat16(), siglip(base, "siglip", 4).bfloat16()]
    language, vision = (save(m, tmp_path / str(n)) for n, m in enumerate(models))
    model = compose_model(base, language, vision, None)
    chunk = begun(model, language, vision, groups)
    expected = expected_weights(model, models[0].float(), models[1].float())
    for name, parameter in global_parameters(chunk):
        if module_of(name) != "merger":
            torch.testing.assert_close(parameter.data, expected[name], rtol=1e-6, atol=1e-7)


def edited(folder: Path, out: Path, **changes: object) -> Path:
    """A copy of a folder's config.json with keys changed, None taking one away; no weights."""
    tree = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        section = tree["vision_config"] if key.startswith("vision__") else tree
        key = key.removeprefix("vision__")
        section.pop(key, None)
        if value is not None:
            section[key] = value
    out.mkdir()
    (out / "config.json").write_text(json.dumps(tree))
    return out


REFUSED_LANGUAGE = {
    "model_type": "llama",
    "attention_bias": True,
    "norm_topk_prob": None,  # Qwen3-MoE's own default is no renormalisation
    "mlp_only_layers": [1],
    "use_sliding_window": True,
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0},
    "hidden_size": "wide",
    "quantization_config": {"bits": 4},
}


@pytest.mark.parametrize("key", REFUSED_LANGUAGE)
def test_what_qwen3_may_not_ask_for(key: str, folders: dict, tmp_path: Path) -> None:
    changes = {key: REFUSED_LANGUAGE[key]} | ({"sliding_window": 64} if key == "use_sliding_window" else {})
    language = edited(folders["moe"], tmp_path / "language", **changes)
    with pytest.raises(UserError, match="sliding_window" if key == "use_sliding_window" else key.split("_param")[0]):
        compose_model(config_of("moe"), language, folders["siglip"], None)


REFUSED_VISION = {
    "model_type": ("clip", "model_type"),
    "vision__layer_norm_eps": (1e-5, "layer_norm_eps"),
    "vision__hidden_act": ("gelu", "hidden_act"),
    "vision__patch_size": ([16, 16], "patch_size"),
    "vision__num_hidden_layers": (3, "has 3 layers"),
    "vision_config": (None, "vision_config is missing"),
}


@pytest.mark.parametrize("key", REFUSED_VISION)
def test_what_siglip_may_not_ask_for(key: str, folders: dict, tmp_path: Path) -> None:
    value, message = REFUSED_VISION[key]
    vision = edited(folders["siglip"], tmp_path / "vision", **{key: value})
    with pytest.raises(UserError, match=message):
        compose_model(config_of("moe"), folders["moe"], vision, None)


def test_problems_of_both_folders_at_once(folders: dict, tmp_path: Path) -> None:
    language = edited(folders["moe"], tmp_path / "language", attention_bias=True, hidden_act=None)
    vision = edited(folders["siglip2"], tmp_path / "vision", vision__num_patches=15, vision__layer_norm_eps=1.0)
    with pytest.raises(UserError) as caught:
        compose_model(config_of("moe"), language, vision, None)
    text = "\n".join(caught.value.problems)
    assert all(key in text for key in ("attention_bias", "hidden_act", "num_patches", "layer_norm_eps"))
    assert len(caught.value.problems) == 4


def test_published_spelling(folders: dict, tmp_path: Path) -> None:
    """rope_theta at the top, a rope_scaling and a sliding_window of null; SigLIP's file naming only what it must."""
    changes = {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": None, "sliding_window": 4096,
               "use_sliding_window": False, "num_local_experts": None, "num_experts": 4}  # fmt: skip
    language = edited(folders["moe"], tmp_path / "language", **changes)
    tree = json.loads((language / "config.json").read_text()) | {"rope_scaling": None}
    (language / "config.json").write_text(json.dumps(tree))
    vision = tmp_path / "vision"
    vision.mkdir()
    section = {"hidden_size": 48, "intermediate_size": 52, "model_type": "siglip_vision_model", "image_size": 16,
               "num_attention_heads": 4, "num_hidden_layers": 4, "patch_size": 4}  # fmt: skip
    (vision / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": section}))
    made = compose_model(config_of("moe"), language, vision, None)
    assert made == compose_model(config_of("moe"), folders["moe"], folders["siglip"], None)


@pytest.mark.parametrize(("which", "change"), [("moe", "missing"), ("siglip", "unexpected"), ("siglip2", "shape")])
def test_weights_that_do_not_fit(which: str, change: str, folders: dict, groups: Groups, tmp_path: Path) -> None:
    """Named by file and tensor, of both folders, and nothing is filled."""
    model = compose_model(config_of("moe"), folders["moe"], folders["siglip"], None)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((folders[which] / "config.json").read_bytes())
    tensors = {n: t for path in folders[which].glob("*.safetensors") for n, t in load_file(path).items()}
    name = "model.layers.0.mlp.experts.1.up_proj.weight" if which == "moe" else "vision_model.encoder.extra"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors[name] = torch.zeros(2)
    else:
        name = "vision_model.embeddings.position_embedding.weight"
        tensors[name] = torch.zeros(25, 48)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    chunks = empty_model(model, groups, "float32")
    language, vision = (broken, folders["siglip"]) if which == "moe" else (folders["moe"], broken)
    with pytest.raises(UserError) as caught:
        load_beginning(chunks, model, language, vision, groups)
    (problem,) = caught.value.problems
    assert name in problem and str(broken) in problem
    assert all(parameter.isnan().all() for parameter in chunks[0].parameters())
