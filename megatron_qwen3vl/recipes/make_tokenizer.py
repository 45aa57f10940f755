"""Makes the built-in tokenizer: ``python -m megatron_qwen3vl.recipes.make_tokenizer FOLDER``.

Qwen's byte-level BPE (its normaliser, pre-tokeniser and added tokens, by name and in order) with a small vocabulary:
on a CPU, an embedding table of 151,936 rows would cost more than the whole ``tiny`` model.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from megatron_qwen3vl.data.qwen_tokenizer import NOT_SPECIAL, SPECIAL, SPLIT, settings_files
from megatron_qwen3vl.recipes.grammar import corpus
from megatron_qwen3vl.recipes.photos import SUBJECTS
from megatron_qwen3vl.recipes.plain_text import stdlib_docstrings

VOCAB_SIZE = 1024  # added tokens included; a power of two divides over any tensor-parallel size
GRAMMAR_WEIGHT = 20  # how often the grammar is repeated, so that its words become single tokens


def train() -> Tokenizer:
    """The same tokenizer for the same Python version."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL) - len(NOT_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [*corpus(SUBJECTS)] * GRAMMAR_WEIGHT + [d.text for d in stdlib_docstrings(minimum=40)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL])
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in (*SPECIAL, *NOT_SPECIAL)}
    for name, content in settings_files(ids).items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    write(train(), Path(sys.argv[1]))
