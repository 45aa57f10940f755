"""Tiny random transformers models on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from reference import PLAIN, loss_config, model_config

from megatron_qwen3vl.config.schema import ModelConfig
from megatron_qwen3vl.model.build import build_chunks
from megatron_qwen3vl.model.qwen3vl import Qwen3VL
from megatron_qwen3vl.parallel.groups import Groups

SIDE_FILES = {
    "tokenizer.json": b'{"version": "1.0"}',
    "preprocessor_config.json": b'{"min_pixels": 1}',
    "chat_template.jinja": "{{ messages }} é\n".encode(),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Saved:
    """A folder written by transformers' save_pretrained."""

    folder: Path
    model: ModelConfig
    kind: str
    dtype: str


def config_of(kind: str) -> ModelConfig:
    """A dense config.json has no word on experts: what it cannot say is zero."""
    model = model_config(kind)
    if kind == "moe":
        return model
    return replace(model, text_config=replace(model.text_config, router_aux_loss_coef=0.0))


def save_reference(reference: torch.nn.Module, folder: Path, dtype: str, max_shard_size: str = "1GB") -> Path:
    """Saved in ``dtype``; the model itself stays float32 with the values it had."""
    values = {name: parameter.data for name, parameter in reference.named_parameters()}
    reference.to(DTYPES[dtype]).save_pretrained(folder, max_shard_size=max_shard_size)
    reference.float()
    for name, parameter in reference.named_parameters():
        parameter.data = values[name]
    for name, content in SIDE_FILES.items():
        (folder / name).write_bytes(content)
    return folder


def empty_model(model: ModelConfig, groups: Groups, dtype: str) -> list[Qwen3VL]:
    """Weights set to NaN, so that one forgotten shows."""
    chunks = [chunk.to(DTYPES[dtype]) for chunk in build_chunks(model, PLAIN, groups, dtype, loss_config())]
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.data.fill_(float("nan"))
    return chunks
