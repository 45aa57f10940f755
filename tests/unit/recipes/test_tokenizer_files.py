"""The built-in tokenizer: Qwen's names and rules, equal ids in tokenizers and transformers and in the tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "megatron_qwen3vl" / "assets" / "tokenizer"
TEXTS = [
    "The digits are 347.",
    "<3.0 seconds>",
    "naïve 漢字 🙂\n\n  x",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<think>a</think>",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("A347", add_special_tokens=False).tokens == ["A", "3", "4", "7"]


@pytest.mark.parametrize("name", ["tiny", "tiny_moe"])
def test_ids_equal_the_models(name: str, tokenizer: Tokenizer) -> None:
    model = yaml.safe_load((ROOT / "configs" / "model" / f"{name}.yaml").read_text())
    assert model["text_config"]["vocab_size"] == tokenizer.get_vocab_size()
    for token, key in (("image_pad", "image"), ("video_pad", "video"), ("vision_start",) * 2, ("vision_end",) * 2):
        assert model[f"{key}_token_id"] == tokenizer.token_to_id(f"<|{token}|>")


def test_transformers_reads_it_alike(tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(FOLDER)
    assert (theirs.eos_token, theirs.pad_token, len(theirs)) == ("<|im_end|>", "<|endoftext|>", 1024)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Read."}]},
        {"role": "assistant", "content": "347"},
    ]
    assert theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Read.<|im_end|>\n"
        "<|im_start|>assistant\n347<|im_end|>\n<|im_start|>assistant\n"
    )
