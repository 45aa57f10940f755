"""What a checkpoint remembers of the Hugging Face folder it came from: its side files and how it laid out its tensors.

Both travel in every checkpoint, so that an export is the folder that was imported, with new values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_qwen3vl.config.schema import ModelConfig
from megatron_qwen3vl.convert.keys import read_tree
from megatron_qwen3vl.convert.safetensors_files import INDEX_FILE, SINGLE_FILE, WeightFiles

CONFIG_FILE = "config.json"
LAYOUT_FILE = "source_layout.json"
GENERATION_FILE = "generation_config.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILES = ("chat_template.json", "chat_template.jinja")
TOKENIZER_FILES = (
    *TEMPLATE_FILES,
    "tokenizer.json",
    SETTINGS_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
SIDE_FILES = (
    CONFIG_FILE,
    GENERATION_FILE,
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    *TOKENIZER_FILES,
)
_GATE_UP = "model.language_model.layers.0.mlp.experts.gate_up_proj"
_DOWN = "model.language_model.layers.0.mlp.experts.down_proj"


@dataclass(frozen=True)
class SourceLayout:
    """``transposed_experts``: [E, in, out], as published checkpoints, transformers 4 and vLLM have it; else [E,
    out, in],
    as transformers 5 writes it. ``weight_map``: the file of each tensor, empty when the layout is ours to choose."""

    transposed_experts: bool
    weight_map: Mapping[str, str]

    def dumps(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def read_side_files(folder: Path) -> dict[str, bytes]:
    """Name -> contents of the side files in a Hugging Face folder, or in a checkpoint's copy of them.

    Beside a folder's weights the layout of its tensors is added as ``source_layout.json``. Raises UserError for damaged
    weight files.
    """
    files = {name: (folder / name).read_bytes() for name in (*SIDE_FILES, LAYOUT_FILE) if (folder / name).is_file()}
    if LAYOUT_FILE not in files and ((folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()):
        with WeightFiles(folder) as weights:
            files[LAYOUT_FILE] = layout_of(weights).dumps()
    return files


def with_tokenizer(files: Mapping[str, bytes], folder: Path) -> dict[str, bytes]:
    """The side files with the tokenizer of ``folder`` in the place of their own."""
    kept = {name: content for name, content in files.items() if name not in TOKENIZER_FILES}
    return kept | {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}


def with_generation(files: Mapping[str, bytes], folder: Path) -> dict[str, bytes]:
    """The side files with the generation defaults of ``folder``, where it has any."""
    path = folder / GENERATION_FILE
    return {**files, **({GENERATION_FILE: path.read_bytes()} if path.is_file() else {})}


def with_chat_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """The side files with ``template`` in the place of the tokenizer's own.

    Raises UserError when the tokenizer's settings are no JSON.
    """
    kept = {name: content for name, content in files.items() if name not in TEMPLATE_FILES}
    settings = read_tree(files.get(SETTINGS_FILE, b"{}"), SETTINGS_FILE)
    settings["chat_template"] = template
    return kept | {SETTINGS_FILE: (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()}


def layout_of(weights: WeightFiles) -> SourceLayout:
    weight_map = {name: stored.file for name, stored in weights.tensors.items()}
    gate_up, down = weights.tensors.get(_GATE_UP), weights.tensors.get(_DOWN)
    if gate_up is None or down is None or len(gate_up.shape) != 3 or len(down.shape) != 3:
        return SourceLayout(False, weight_map)
    # gate_up is [E, D, 2F] or [E, 2F, D], down [E, F, D] or [E, D, F]: only one of the two can be square
    transposed = 2 * down.shape[1] == gate_up.shape[2] and down.shape[2] == gate_up.shape[1]
    return SourceLayout(transposed, weight_map)


def chosen_layout(files: Mapping[str, bytes], model: ModelConfig) -> SourceLayout:
    """The source's layout, else that of the published checkpoints, which transformers and vLLM both load.

    transformers 5 tells the two orders of the experts by their shapes and takes a square matrix as it is: a model with
    such matrices is written in its own order.
    """
    if LAYOUT_FILE in files:
        return SourceLayout(**json.loads(files[LAYOUT_FILE]))
    text = model.text_config
    square = text.hidden_size in (text.moe_intermediate_size, 2 * text.moe_intermediate_size)
    return SourceLayout(bool(text.num_experts) and not square, {})
