"""Greedy continuation of prompts with the training model itself; for the demonstration's reading test.

Prompts share packs, so a round costs one forward per pack; there is no key/value cache. For anything larger, export and
use transformers or vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from megatron_qwen3vl.batch import IGNORE, Sample, collate
from megatron_qwen3vl.data.loader import to_pack
from megatron_qwen3vl.model.qwen3vl import Qwen3VL


def greedy(
    model: Qwen3VL, prompts: Sequence[Sample], num_tokens: int, pad_id: int, prompts_per_pack: int = 64
) -> list[list[int]]:
    """The ``num_tokens`` most likely next tokens of each prompt, one after another. Single-process layouts only."""
    grown = list(prompts)
    with torch.no_grad():
        for _ in range(num_tokens):
            for first in range(0, len(grown), prompts_per_pack):
                part = grown[first : first + prompts_per_pack]
                grown[first : first + prompts_per_pack] = _extend(model, part, pad_id)
    return [sample.input_ids[-num_tokens:].tolist() for sample in grown]


def _extend(model: Qwen3VL, samples: Sequence[Sample], pad_id: int) -> list[Sample]:
    ends = np.cumsum([len(sample.input_ids) for sample in samples]) - 1
    device = next(model.parameters()).device
    batch = collate([to_pack(0, samples, int(ends[-1]) + 1, pad_id)], 0.0, device)
    tokens = model.logits(batch)[torch.as_tensor(ends, device=device)].argmax(-1).tolist()
    return [_append(sample, token) for sample, token in zip(samples, tokens, strict=True)]


def _append(sample: Sample, token: int) -> Sample:
    """One more text token: its position follows the largest so far on all three axes."""
    position = np.full((3, 1), sample.positions.max() + 1, sample.positions.dtype)
    return replace(
        sample,
        input_ids=np.append(sample.input_ids, np.int32(token)),
        labels=np.append(sample.labels, np.int32(IGNORE)),
        positions=np.concatenate([sample.positions, position], axis=1),
    )
