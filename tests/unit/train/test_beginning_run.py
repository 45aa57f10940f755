"""A run that begins from a Qwen3 and a SigLIP-2 folder: it trains, and its export is a Qwen3-VL to transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from beginning_cases import qwen3, save, siglip, vision_part
from faults_data import make_mixture
from reference import read_model

from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.data.qwen_tokenizer import CHAT_TEMPLATE
from megatron_qwen3vl.data.tokenizer import BUILT_IN
from megatron_qwen3vl.train.convert import export_checkpoint
from megatron_qwen3vl.train.pretrain import pretrain


def test_s0_from_two_folders_to_transformers(tmp_path: Path) -> None:
    """S0 trains the mergers only: what the export holds of the two models is what they held, cast to nothing."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    base = read_model("tiny")
    text = replace(base.text_config, hidden_size=48, intermediate_size=64, num_hidden_layers=3)
    vision = replace(base.vision_config, hidden_size=32, intermediate_size=40, out_hidden_size=48)
    shape = replace(base, text_config=text, vision_config=vision)
    models = qwen3(shape), siglip(shape, "siglip2", 8)
    language, seeing = save(models[0], tmp_path / "qwen3"), save(models[1], tmp_path / "siglip")
    for path in BUILT_IN.iterdir():
        shutil.copy(path, language)
    settings = json.loads((language / "tokenizer_config.json").read_text()) | {"chat_template": "for text only"}
    (language / "tokenizer_config.json").write_text(json.dumps(settings))
    (language / "generation_config.json").write_text('{"eos_token_id": [1000, 998]}')
    mixture = make_mixture(tmp_path, samples=20)
    overrides = [
        f"run.dir={tmp_path / 'run'}", f"run.init_language={language}", f"run.init_vision={seeing}", "run.stages=[s0]",
        "run.rope_theta=5e6", "stages.s0.steps=6", "stages.s0.sequence_length=128", "stages.s0.global_batch_size=2",
        "stages.s0.optimizer.lr=0.01", f"stages.s0.mixture={mixture}", "stages.s0.micro_batch_size=1", "data.workers=0",
        "validation.every=0", "log.wandb=disabled", "log.progress=false",
    ]  # fmt: skip
    pretrain(load_config(overrides))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and rows[-1]["loss"] < rows[0]["loss"]

    out = tmp_path / "out"
    export_checkpoint(tmp_path / "run" / "checkpoints" / "s0" / "step_00000006", out)
    loaded, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert type(loaded).__name__ == "Qwen3VLForConditionalGeneration" and not any(info[key] for key in info), info
    state = loaded.state_dict()
    for name, tensor in models[0].state_dict().items():
        theirs = name if name == "lm_head.weight" else f"model.language_model.{name.removeprefix('model.')}"
        assert torch.equal(state[theirs], tensor), name
    source = vision_part(models[1]).state_dict()
    assert torch.equal(state["model.visual.pos_embed.weight"], source["embeddings.position_embedding.weight"])
    assert torch.equal(state["model.visual.blocks.2.mlp.linear_fc1.weight"], source["encoder.layers.2.mlp.fc1.weight"])
    assert loaded.config.text_config.rope_parameters["rope_theta"] == 5e6
    assert loaded.generation_config.eos_token_id == [1000, 998]
    assert AutoTokenizer.from_pretrained(out).chat_template == CHAT_TEMPLATE
    with torch.no_grad():
        assert loaded(torch.arange(20)[None]).logits.isfinite().all()
