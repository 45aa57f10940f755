"""What a run takes from beside its weights: the tokenizer, the pixel limits, the files that travel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_qwen3vl.config.schema import ModelConfig
from megatron_qwen3vl.convert.config import to_hf_config
from megatron_qwen3vl.convert.source_layout import (
    read_side_files,
    with_chat_template,
    with_generation,
    with_tokenizer,
)
from megatron_qwen3vl.data.qwen_tokenizer import CHAT_TEMPLATE
from megatron_qwen3vl.data.tokenizer import BUILT_IN, Tokenizer, load_tokenizer
from megatron_qwen3vl.data.vision import VisionLimits, processor_files, read_limits


@dataclass(frozen=True)
class Ingredients:
    """What all stages of a run share: found before anything expensive starts."""

    tokenizer: Tokenizer
    limits: VisionLimits
    side_files: Mapping[str, bytes]  # config.json, tokenizer and processor files: they travel with every checkpoint


def find_ingredients(
    model: ModelConfig, dtype: str, init_from: str | None, tokenizer: str | None, init_language: str | None = None
) -> Ingredients:
    """Raises UserError naming the folder or file that is missing or does not fit the model.

    Of ``init_language`` the tokenizer (with our chat template: Qwen3's knows no pictures) and the generation defaults
    are taken; the pixel limits of a run that begins so are the published ones.
    """
    origin = Path(init_from) if init_from is not None else None
    beside = init_from if init_from is not None else init_language
    has_tokenizer = beside is not None and (Path(beside) / "tokenizer.json").exists()
    folder = tokenizer or (beside if has_tokenizer else None)
    limits = read_limits(origin)
    config = json.dumps(to_hf_config(model, dtype), indent=2).encode()
    side_files = {"config.json": config, **processor_files(limits, model.vision_config)}
    if origin is not None:
        side_files = read_side_files(origin)
    if tokenizer is not None or not has_tokenizer or origin is None:
        side_files = with_tokenizer(side_files, Path(folder) if folder is not None else BUILT_IN)
    if init_language is not None:
        side_files = with_generation(side_files, Path(init_language))
        if tokenizer is None:
            side_files = with_chat_template(side_files, CHAT_TEMPLATE)
    return Ingredients(tokenizer=load_tokenizer(folder, model), limits=limits, side_files=side_files)
