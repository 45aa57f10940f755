"""An exported folder as a user of transformers reads with it: prompts made and continued from its files alone."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

BATCH = 50  # prompts of one length that are continued together


@dataclass(frozen=True)
class Prompt:
    """What transformers gets: token ids int64 [n], pixels float32 [P, C], grid int64 [1, 3]."""

    ids: torch.Tensor
    pixels: torch.Tensor
    grid: torch.Tensor


@dataclass(frozen=True)
class Reader:
    """transformers' model, tokenizer with its chat template, and image processor of one folder."""

    model: Any
    tokenizer: Any
    processor: Any

    def prompt(self, picture: bytes, asked: str) -> Prompt:
        made = self.processor(images=Image.open(io.BytesIO(picture)).convert("RGB"), return_tensors="pt")
        grid = made["image_grid_thw"]
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]
        written = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pad = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        visual_tokens = int(grid.prod()) // self.processor.merge_size**2
        ids = self.tokenizer(written.replace(pad, pad * visual_tokens), return_tensors="pt")["input_ids"][0]
        return Prompt(ids, made["pixel_values"], grid)

    def answers(self, prompts: Sequence[Prompt], max_tokens: int) -> list[str]:
        """What the model says, in the order of ``prompts``; those of equal length share batches."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, prompt in enumerate(prompts):
            by_length[len(prompt.ids)].append(number)
        said = [""] * len(prompts)
        for numbers in by_length.values():
            for first in range(0, len(numbers), BATCH):
                part = numbers[first : first + BATCH]
                for number, answer in zip(part, self._generate([prompts[n] for n in part], max_tokens), strict=True):
                    said[number] = answer
        return said

    def _generate(self, prompts: Sequence[Prompt], max_tokens: int) -> list[str]:
        ids = torch.stack([prompt.ids for prompt in prompts])
        with torch.inference_mode():
            grown = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == self.model.config.image_token_id).int(),
                pixel_values=torch.cat([prompt.pixels for prompt in prompts]),
                image_grid_thw=torch.cat([prompt.grid for prompt in prompts]),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return list(self.tokenizer.batch_decode(grown[:, ids.shape[1] :], skip_special_tokens=True))


def load_reader(folder: Path) -> Reader:
    """Raises what transformers raises for a folder that it cannot load."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Reader(
        model=AutoModelForImageTextToText.from_pretrained(folder).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        # the one of transformers' image processors for this model that needs no torchvision; it reads the same file
        processor=Qwen2VLImageProcessorPil.from_pretrained(folder),
    )
