"""The recipe's real beginning: a Qwen3 folder and a SigLIP-2 folder into our model chunks; the mergers stay as drawn.

As ``hf.load_hf``: one parameter at a time, each rank its own part, the same in every layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from megatron_qwen3vl.config.schema import ModelConfig
from megatron_qwen3vl.convert.beginning_config import read_siglip
from megatron_qwen3vl.convert.beginning_names import (
    PATCH_EMBEDDING,
    PREFIXES,
    is_left_out,
    language_table,
    vision_table,
)
from megatron_qwen3vl.convert.hf import fill, misfits
from megatron_qwen3vl.convert.safetensors_files import WeightFiles
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.model.build import module_of
from megatron_qwen3vl.parallel.groups import Groups


def load_beginning(
    modules: Sequence[nn.Module], model: ModelConfig, language: Path, vision: Path, groups: Groups
) -> None:
    """Fill the language model from ``language`` (Qwen3) and the vision encoder from ``vision`` (SigLIP-2).

    ``model`` is ``compose_model``'s of the same folders. The mergers keep what they hold: the random weights of
    ``build.initialize``. Values are cast and optimizers reloaded as for ``load_hf``. Raises UserError naming the files
    and tensors of both folders that are missing, unexpected, misshapen, damaged or cut short; nothing is filled then.
    """
    siglip = read_siglip(vision)
    with WeightFiles(language) as language_weights, WeightFiles(vision) as vision_weights:
        prefix = next((p for p in PREFIXES if p + PATCH_EMBEDDING in vision_weights.tensors), PREFIXES[0])
        tables = [
            (language_weights, language_table(model)),
            (vision_weights, vision_table(model, siglip, prefix)),
        ]
        left_out = {name for name in vision_weights.tensors if is_left_out(name, prefix)}
        problems = misfits(*tables[0], tied=model.tie_word_embeddings)
        problems += misfits(*tables[1], left_out=left_out)
        if problems:
            raise UserError(problems)
        unfilled = fill(modules, tables, groups)
    foreign = [name for name in unfilled if module_of(name) != "merger"]
    if foreign:
        raise ValueError(f"neither folder's table has a row for {foreign[:3]}")
