"""The one table: Hugging Face's name <-> ours <-> the operation between them.

``name[{expert}]`` is one slice along the first dimension of a tensor that holds all experts.

Hugging Face's names: ``transformers/models/qwen3_vl/modeling_qwen3_vl.py`` and ``qwen3_vl_moe``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from megatron_qwen3vl.config.schema import ModelConfig, TextConfig, VisionConfig
from megatron_qwen3vl.convert.operations import (
    COLUMNS,
    GATE_UP_ROWS,
    ROWS,
    SAME,
    WHOLE,
    FlattenKernel,
    GroupQKV,
    HeadQKV,
    Operation,
    Partition,
    StackRows,
    Transpose,
)

EMBEDDING = "language.embedding.word_embeddings.weight"
OUTPUT_LAYER = "language.output_layer.weight"
_COUNTER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Rule:
    """One row; ``shape`` is our whole tensor's."""

    hf: tuple[str, ...]
    ours: str
    shape: tuple[int, ...]
    operation: Operation = SAME
    partition: Partition = WHOLE

    @property
    def of_expert(self) -> bool:
        return "{expert}" in self.ours


@dataclass(frozen=True)
class Piece:
    """A Hugging Face tensor, or with ``index`` one slice of its first dimension."""

    name: str
    index: int | None


@dataclass(frozen=True)
class Entry:
    """One of our parameters, by its name in the whole model, and the pieces it is made of."""

    ours: str
    pieces: tuple[Piece, ...]
    rule: Rule


@dataclass(frozen=True)
class HfTensor:
    """One tensor of a checkpoint: ``parts`` one after another along its first dimension, each (entry, number of the
    piece in its entry)."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[Entry, int], ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class NameTable:
    """The rows written out for one model; both directions."""

    entries: dict[str, Entry]  # by our name
    tensors: dict[str, HfTensor]  # by Hugging Face's name

    @staticmethod
    def of(model: ModelConfig, transposed_experts: bool) -> NameTable:
        """``transposed_experts``: experts stand as [E, in, out], as in the published checkpoints
        (``source_layout.py``)."""
        return NameTable.write_out(rules(model, transposed_experts), model)

    @staticmethod
    def write_out(rows: Iterable[Rule], model: ModelConfig) -> NameTable:
        """The rows for every layer, block, level and expert of the model."""
        counts = {
            "block": model.vision_config.depth,
            "level": len(model.vision_config.deepstack_visual_indexes),
            "layer": model.text_config.num_hidden_layers,
            "expert": model.text_config.num_experts,
        }
        entries: dict[str, Entry] = {}
        parts: dict[str, list[tuple[Entry, int]]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for rule in rows:
            piece_shapes = [tuple(p.shape) for p in rule.operation.split(torch.empty(rule.shape, device="meta"))]
            for numbers in _countings(rule.ours, counts):
                entry = Entry(rule.ours.format(**numbers), tuple(_piece(n.format(**numbers)) for n in rule.hf), rule)
                entries[entry.ours] = entry
                for number, (piece, shape) in enumerate(zip(entry.pieces, piece_shapes, strict=True)):
                    parts.setdefault(piece.name, []).append((entry, number))
                    shapes[piece.name] = shape if piece.index is None else (counts["expert"], *shape)
        return NameTable(entries, {n: HfTensor(n, shapes[n], tuple(parts[n])) for n in parts})


def rules(model: ModelConfig, transposed_experts: bool) -> tuple[Rule, ...]:
    """The table of one model."""
    text = model.text_config
    hf = "model.language_model."
    feed_forward = _experts(text, hf, transposed_experts) if text.num_experts else dense_rules(text, hf)
    return (*_vision(model.vision_config), *language_rules(model, hf, feed_forward))


def language_rules(model: ModelConfig, hf: str, feed_forward: Sequence[Rule]) -> tuple[Rule, ...]:
    """The language model's rows; its tensors' names begin with ``hf``. A tied one has no row for the head: it is the
    embedding."""
    text = model.text_config
    rows = [
        Rule((hf + "embed_tokens.weight",), EMBEDDING, (text.vocab_size, text.hidden_size), partition=ROWS),
        *_attention(text, hf),
        *feed_forward,
        Rule((hf + "norm.weight",), "language.decoder.final_layernorm.weight", (text.hidden_size,)),
    ]
    if not model.tie_word_embeddings:
        rows.append(Rule(("lm_head.weight",), OUTPUT_LAYER, (text.vocab_size, text.hidden_size), partition=ROWS))
    return tuple(rows)


def _vision(vision: VisionConfig) -> list[Rule]:
    width, ffn = vision.hidden_size, vision.intermediate_size
    kernel = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    hf, ours = "model.visual.blocks.{block}.", "vision.layers.{block}."
    qkv = HeadQKV(vision.num_heads)
    table = [
        Rule(
            ("model.visual.patch_embed.proj.weight",),
            "vision.patch_embed.weight",
            (width, vision.patch_values),
            FlattenKernel(kernel),
            ROWS,
        ),
        Rule(("model.visual.patch_embed.proj.bias",), "vision.patch_embed.bias", (width,), partition=ROWS),
        Rule(
            ("model.visual.pos_embed.weight",),
            "vision.position_table.weight",
            (vision.num_position_embeddings, width),
            partition=ROWS,
        ),
        *norm_rules(hf + "norm1", ours + "input_layernorm", width),
        *norm_rules(hf + "norm2", ours + "pre_mlp_layernorm", width),
        *column_rules(hf + "attn.qkv", ours + "self_attention.linear_qkv", 3 * width, width, qkv),
        *row_rules(hf + "attn.proj", ours + "self_attention.linear_proj", width, width),
        *column_rules(hf + "mlp.linear_fc1", ours + "mlp.linear_fc1", ffn, width),
        *row_rules(hf + "mlp.linear_fc2", ours + "mlp.linear_fc2", width, ffn),
    ]
    folded = width * vision.spatial_merge_size**2
    # the main merger normalises before the fold, the DeepStack mergers after it
    mergers = (
        ("model.visual.merger.", "vision.merger.", width),
        ("model.visual.deepstack_merger_list.{level}.", "vision.deepstack_mergers.{level}.", folded),
    )
    for hf, ours, normed in mergers:
        table += norm_rules(hf + "norm", ours + "norm", normed)
        table += column_rules(hf + "linear_fc1", ours + "linear_fc1", folded, folded)
        table += row_rules(hf + "linear_fc2", ours + "linear_fc2", vision.out_hidden_size, folded)
    return table


def _attention(text: TextConfig, hf: str) -> list[Rule]:
    width, head, groups = text.hidden_size, text.head_dim, text.num_key_value_heads
    hf, ours = hf + "layers.{layer}.", "language.decoder.layers.{layer}."
    qkv = tuple(hf + f"self_attn.{x}_proj.weight" for x in "qkv")
    rows = (text.num_attention_heads + 2 * groups) * head
    group_qkv = GroupQKV(groups, text.num_attention_heads // groups)
    proj = (hf + "self_attn.o_proj.weight",)
    proj_shape = (width, text.num_attention_heads * head)
    return [
        Rule((hf + "input_layernorm.weight",), ours + "input_layernorm.weight", (width,)),
        Rule((hf + "post_attention_layernorm.weight",), ours + "pre_mlp_layernorm.weight", (width,)),
        Rule(qkv, ours + "self_attention.linear_qkv.weight", (rows, width), group_qkv, ROWS),
        Rule(proj, ours + "self_attention.linear_proj.weight", proj_shape, partition=COLUMNS),
        Rule((hf + "self_attn.q_norm.weight",), ours + "self_attention.q_layernorm.weight", (head,)),
        Rule((hf + "self_attn.k_norm.weight",), ours + "self_attention.k_layernorm.weight", (head,)),
    ]


def dense_rules(text: TextConfig, hf: str) -> list[Rule]:
    """The feed-forward rows of a dense model."""
    width, ffn = text.hidden_size, text.intermediate_size
    hf, ours = hf + "layers.{layer}.mlp.", "language.decoder.layers.{layer}.mlp."
    gate_up = (hf + "gate_proj.weight", hf + "up_proj.weight")
    return [
        Rule(gate_up, ours + "linear_fc1.weight", (2 * ffn, width), StackRows(), GATE_UP_ROWS),
        Rule((hf + "down_proj.weight",), ours + "linear_fc2.weight", (width, ffn), partition=COLUMNS),
    ]


def _experts(text: TextConfig, hf: str, transposed: bool) -> list[Rule]:
    width, ffn = text.hidden_size, text.moe_intermediate_size
    hf, ours = hf + "layers.{layer}.mlp.", "language.decoder.layers.{layer}.mlp."
    expert = ours + "experts.local_experts.{expert}."
    operation: Operation = Transpose() if transposed else SAME
    gate_up, down = (hf + "experts.gate_up_proj[{expert}]",), (hf + "experts.down_proj[{expert}]",)
    return [
        Rule((hf + "gate.weight",), ours + "router.weight", (text.num_experts, width)),
        Rule(gate_up, expert + "linear_fc1.weight", (2 * ffn, width), operation, GATE_UP_ROWS),
        Rule(down, expert + "linear_fc2.weight", (width, ffn), operation, COLUMNS),
    ]


def norm_rules(hf: str, ours: str, width: int) -> list[Rule]:
    """A norm with bias."""
    return [Rule((f"{hf}.{kind}",), f"{ours}.{kind}", (width,)) for kind in ("weight", "bias")]


def column_rules(hf: str, ours: str, rows: int, columns: int, operation: Operation = SAME) -> list[Rule]:
    """A column-parallel layer with bias: both are divided by rows."""
    weight = Rule((hf + ".weight",), ours + ".weight", (rows, columns), operation, ROWS)
    return [weight, Rule((hf + ".bias",), ours + ".bias", (rows,), operation, ROWS)]


def row_rules(hf: str, ours: str, rows: int, columns: int) -> list[Rule]:
    """A row-parallel layer with bias: the weight is divided by columns, the bias is whole everywhere."""
    weight = Rule((hf + ".weight",), ours + ".weight", (rows, columns), partition=COLUMNS)
    return [weight, Rule((hf + ".bias",), ours + ".bias", (rows,))]


def _countings(pattern: str, counts: dict[str, int]) -> Iterator[dict[str, int]]:
    names = _COUNTER.findall(pattern)
    for numbers in itertools.product(*(range(counts[name]) for name in names)):
        yield dict(zip(names, numbers, strict=True))


def _piece(name: str) -> Piece:
    tensor, bracket, index = name.removesuffix("]").partition("[")
    return Piece(tensor, int(index) if bracket else None)
