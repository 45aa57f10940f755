"""The reference of every parity test: tiny random transformers models, samples for them, and the mapping of tensors.

The mapping here is written apart from convert/ on purpose: neither can hide the other's mistake.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dacite
import numpy as np
import torch
import yaml

from megatron_qwen3vl.batch import IGNORE, Batch, Document, Pack, Sample, collate
from megatron_qwen3vl.config.schema import (
    ONE_PROCESS,
    LossConfig,
    ModelConfig,
    ParallelConfig,
    TextConfig,
    VisionConfig,
)

VISION_HEADS = 4
VOCABULARY, IMAGE, VIDEO, START, END = 128, 120, 121, 122, 123
KINDS = ("dense_tied", "dense_untied", "moe")
PLAIN = dataclasses.replace(ONE_PROCESS, overlap=True)


def loss_config(exponent: float = 0.5, aux_coefficient: float | None = 0.0, chunk_size: int = 7) -> LossConfig:
    """A chunk smaller than the number of labels, so that the head runs in several."""
    return LossConfig(exponent=exponent, aux_coefficient=aux_coefficient, chunk_size=chunk_size)


def model_config(kind: str) -> ModelConfig:
    """Head widths that are no powers of two; two DeepStack levels in 8 layers (four chunks) or three in 6 (two)."""
    experts = 4 if kind == "moe" else 0
    return ModelConfig(
        text_config=TextConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=88,
            num_hidden_layers=8 if kind == "dense_untied" else 6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=24,
            hidden_act="silu",
            rms_norm_eps=1e-6,
            max_position_embeddings=4096,
            initializer_range=0.08,
            rope_theta=5e6,
            mrope_section=(6, 3, 3),
            num_experts=experts,
            num_experts_per_tok=2 if experts else 0,
            moe_intermediate_size=40 if experts else 0,
            norm_topk_prob=True,
            router_aux_loss_coef=0.001,
        ),
        vision_config=VisionConfig(
            depth=4,
            hidden_size=48,
            intermediate_size=52,
            num_heads=VISION_HEADS,
            in_channels=3,
            patch_size=4,
            temporal_patch_size=2,
            spatial_merge_size=2,
            out_hidden_size=64,
            num_position_embeddings=36,
            deepstack_visual_indexes=(0, 2) if kind == "dense_untied" else (0, 1, 2),
            hidden_act="gelu_pytorch_tanh",
            initializer_range=0.08,
            rope_theta=10000.0,
        ),
        tie_word_embeddings=kind == "dense_tied",
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )


def transformers_config(model: ModelConfig) -> Any:
    """transformers' configuration of the same model."""
    from transformers import Qwen3VLConfig, Qwen3VLMoeConfig

    text, vision = model.text_config, model.vision_config
    absent = {"rope_theta", "mrope_section", "norm_topk_prob", "router_aux_loss_coef"}
    experts = {"num_experts", "num_experts_per_tok", "moe_intermediate_size"}
    chosen = vars(text).keys() - absent - (set() if text.num_experts else experts)
    text_dict = {name: getattr(text, name) for name in chosen}
    text_dict["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": text.rope_theta,
        "mrope_section": list(text.mrope_section),
        "mrope_interleaved": True,
    }
    plain = {name: value for name, value in vars(vision).items() if name != "rope_theta"}
    plain["deepstack_visual_indexes"] = list(vision.deepstack_visual_indexes)
    plain["rope_parameters"] = {"rope_type": "axial", "rope_theta": vision.rope_theta}
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    make = Qwen3VLMoeConfig if text.num_experts else Qwen3VLConfig
    return make(
        text_config=text_dict,
        vision_config=plain,
        tie_word_embeddings=model.tie_word_embeddings,
        **{name: getattr(model, name) for name in ids},
    )


def transformers_model(model: ModelConfig, seed: int = 0) -> torch.nn.Module:
    """transformers' model with random weights; biases and norms random too, so that none of them can be forgotten."""
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeForConditionalGeneration

    make = Qwen3VLMoeForConditionalGeneration if model.text_config.num_experts else Qwen3VLForConditionalGeneration
    torch.manual_seed(seed)
    reference = make(transformers_config(model)).float().train()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return reference


@dataclass(frozen=True)
class Case:
    """A sample and its modality per token (0 text, 1 image, 2 video), which transformers wants."""

    sample: Sample
    modality: np.ndarray


def make_case(
    key: str,
    parts: Sequence[tuple[str, object]],
    rng: np.random.Generator,
    model: ModelConfig,
    predicted: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Case:
    """A sample of parts: ("text", length), ("image", (h, w)), ("video", (groups, h, w)); sizes in patches.

    Labels are the next tokens, never a visual one; ``predicted`` narrows the positions further (a conversation's mask).
    """
    ids, modality, grids = [], [], []
    for kind, what in parts:
        if kind == "text":
            words = rng.integers(0, 100, size=what).tolist()
            ids += words
            modality += [0] * len(words)
            continue
        groups, height, width = (1, *what) if kind == "image" else what
        for group in range(groups):
            if kind == "video":  # a timestamp
                ids += rng.integers(0, 100, size=2 + group % 2).tolist()
            tokens = height * width // model.vision_config.spatial_merge_size**2
            ids += [START] + [IMAGE if kind == "image" else VIDEO] * tokens + [END]
            modality += [0] * (len(ids) - len(modality) - tokens - 1) + [1 if kind == "image" else 2] * tokens + [0]
            grids.append((1, height, width))
    input_ids, types = np.array(ids, np.int32), np.array(modality, np.int32)
    labels = np.append(input_ids[1:], IGNORE).astype(np.int32)
    labels[labels >= 100] = IGNORE
    if predicted is not None:
        labels[~predicted(np.arange(len(labels)))] = IGNORE
    num_patches = sum(h * w for _, h, w in grids)
    sample = Sample(
        key=key,
        domain="test",
        input_ids=input_ids,
        labels=labels,
        positions=np.zeros((3, len(ids)), np.int32),
        visual_index=np.flatnonzero(types).astype(np.int32),
        grids=np.array(grids, np.int32).reshape(-1, 3),
        patches=rng.integers(0, 256, size=(num_patches, model.vision_config.patch_values), dtype=np.uint8),
    )
    return Case(sample, types)


def standard_cases(model: ModelConfig, seed: int = 0) -> list[Case]:
    """Text, one and several images, odd sizes, a frame-group video, a conversation, and a sample without labels."""
    rng = np.random.default_rng(seed)
    specs = {
        "text": [("text", 23)],
        "image": [("text", 3), ("image", (4, 6)), ("text", 9)],
        "images": [("image", (2, 2)), ("text", 4), ("image", (6, 10)), ("image", (6, 10)), ("text", 5)],
        "video": [("text", 2), ("video", (3, 4, 2)), ("text", 6)],
        "mixed": [("image", (8, 2)), ("text", 3), ("video", (2, 2, 6)), ("text", 4), ("image", (2, 14)), ("text", 1)],
        "conversation": [("text", 8), ("image", (4, 4)), ("text", 30)],
        "unlabelled": [("text", 5), ("image", (2, 4)), ("text", 2)],
    }
    masks: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "conversation": lambda position: (position % 11 < 4) & (position > 12),
        "unlabelled": lambda position: position < 0,
    }
    return [make_case(key, parts, rng, model, masks.get(key)) for key, parts in specs.items()]


def with_positions(cases: Sequence[Case], reference: torch.nn.Module) -> list[Case]:
    """The cases with the MRoPE positions that transformers computes."""
    return [Case(_replace(c.sample, positions=reference_positions(c, reference)), c.modality) for c in cases]


def reference_positions(case: Case, reference: torch.nn.Module) -> np.ndarray:
    inputs = transformers_inputs(case)
    positions, _ = reference.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=torch.from_numpy(case.modality)[None],
        image_grid_thw=inputs.get("image_grid_thw"),
        video_grid_thw=inputs.get("video_grid_thw"),
    )
    return positions[:, 0].numpy().astype(np.int32)


def transformers_inputs(case: Case) -> dict[str, torch.Tensor]:
    """Keyword arguments of transformers' forward for one sample; neighbouring frame groups of a size are one video."""
    sample = case.sample
    inputs = {"input_ids": torch.from_numpy(sample.input_ids).long()[None]}
    if not len(sample.grids):
        return inputs
    inputs["mm_token_type_ids"] = torch.from_numpy(case.modality)[None]
    counts = sample.grids.prod(axis=1)
    patches = np.split(sample.patches, np.cumsum(counts)[:-1])
    kinds = case.modality[sample.visual_index[np.cumsum([0, *counts[:-1] // 4])]]
    for kind, pixels, grid in ((1, "pixel_values", "image_grid_thw"), (2, "pixel_values_videos", "video_grid_thw")):
        chosen = [i for i in range(len(counts)) if kinds[i] == kind]
        if chosen:
            values = torch.from_numpy(np.concatenate([patches[i] for i in chosen])).float()
            inputs[pixels] = (values / 255 - 0.5) / 0.5
            grids = [tuple(sample.grids[i]) for i in chosen]
            if kind == 2:
                grids = [(sum(1 for _ in group), *size[1:]) for size, group in itertools.groupby(grids)]
            inputs[grid] = torch.tensor(grids).long()
    return inputs


@dataclass(frozen=True)
class Reference:
    """What transformers says about the cases; gradients are of the weighted loss, by transformers' names."""

    logits: list[torch.Tensor]  # [n, vocabulary] per sample
    token_losses: list[torch.Tensor]  # [n_i] per sample
    loss: float
    gradients: dict[str, torch.Tensor]


def run_reference(reference: torch.nn.Module, cases: Sequence[Case], exponent: float = 0.5) -> Reference:
    """Each sample alone through transformers; loss = sum_i n_i^-e sum_t l_it / sum_i n_i^(1-e)."""
    reference.zero_grad(set_to_none=True)
    device = next(reference.parameters()).device
    counts = [case.sample.num_labels for case in cases]
    normaliser = sum(count ** (1 - exponent) for count in counts if count)
    logits, losses, total = [], [], 0.0
    for case, count in zip(cases, counts, strict=True):
        inputs = {name: tensor.to(device) for name, tensor in transformers_inputs(case).items()}
        output = reference(**inputs).logits[0]
        labels = torch.from_numpy(case.sample.labels).long().to(device)
        chosen = labels != IGNORE
        token_losses = torch.nn.functional.cross_entropy(output[chosen], labels[chosen], reduction="none")
        logits.append(output.detach())
        losses.append(token_losses.detach())
        if count:
            loss = token_losses.sum() * count ** (-exponent) / normaliser
            loss.backward()
            total += loss.item()
    zero = torch.zeros
    gradients = {n: zero(p.shape) if p.grad is None else p.grad.clone() for n, p in reference.named_parameters()}
    return Reference(logits, losses, total, gradients)


def make_pack(lane: int, cases: Sequence[Case], padding: int, patch_values: int) -> Pack:
    """The samples one after another, then padding."""
    samples = [case.sample for case in cases]
    lengths = [len(s.input_ids) for s in samples]
    starts = np.cumsum([0, *lengths])
    ends = np.append(starts, starts[-1] + padding) if padding else starts
    pad = np.zeros(padding, np.int32)
    return Pack(
        lane=lane,
        documents=tuple(Document(s.key, s.domain, s.num_labels, s.failure) for s in samples),
        input_ids=np.concatenate([*(s.input_ids for s in samples), pad]),
        labels=np.concatenate([*(s.labels for s in samples), pad + IGNORE]),
        positions=np.concatenate([*(s.positions for s in samples), np.zeros((3, padding), np.int32)], axis=1),
        cu_seqlens=ends.astype(np.int32),
        num_padding=padding,
        visual_index=np.concatenate([s.visual_index + o for s, o in zip(samples, starts, strict=False)]),
        grids=np.concatenate([s.grids for s in samples]),
        patches=np.concatenate([s.patches for s in samples]).reshape(-1, patch_values),
    )


def make_batch(
    model: ModelConfig,
    *packs: Sequence[Case],
    length: int = 0,
    exponent: float = 0.5,
    device: torch.device | None = None,
) -> Batch:
    """One micro-batch of these packs, each padded to the longest (or ``length``)."""
    sizes = [sum(len(c.sample.input_ids) for c in pack) for pack in packs]
    longest = max([length, *sizes])
    values = model.vision_config.patch_values
    made = [make_pack(i, p, longest - s, values) for i, (p, s) in enumerate(zip(packs, sizes, strict=True))]
    return collate(made, exponent, device or torch.device("cpu"))


def ours_from_transformers(tensors: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    """transformers' tensors (weights or gradients) under our names and in our order."""
    text, vision = model.text_config, model.vision_config
    source = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    ours = {
        "vision.patch_embed.weight": source["visual.patch_embed.proj.weight"].flatten(1),
        "vision.patch_embed.bias": source["visual.patch_embed.proj.bias"],
        "vision.position_table.weight": source["visual.pos_embed.weight"],
        "language.embedding.word_embeddings.weight": source["language_model.embed_tokens.weight"],
        "language.decoder.final_layernorm.weight": source["language_model.norm.weight"],
    }
    if not model.tie_word_embeddings:
        ours["language.output_layer.weight"] = source["lm_head.weight"]
    mergers = {"visual.merger": "vision.merger"}
    mergers |= {
        f"visual.deepstack_merger_list.{k}": f"vision.deepstack_mergers.{k}"
        for k in range(len(vision.deepstack_visual_indexes))
    }
    for theirs, own in mergers.items():
        for part in ("norm", "linear_fc1", "linear_fc2"):
            for kind in ("weight", "bias"):
                ours[f"{own}.{part}.{kind}"] = source[f"{theirs}.{part}.{kind}"]
    for n in range(vision.depth):
        theirs, own = f"visual.blocks.{n}", f"vision.layers.{n}"
        pairs = {"norm1": "input_layernorm", "norm2": "pre_mlp_layernorm", "attn.proj": "self_attention.linear_proj",
                 "mlp.linear_fc1": "mlp.linear_fc1", "mlp.linear_fc2": "mlp.linear_fc2"}  # fmt: skip
        for kind in ("weight", "bias"):
            for a, b in pairs.items():
                ours[f"{own}.{b}.{kind}"] = source[f"{theirs}.{a}.{kind}"]
            q, k, v = source[f"{theirs}.attn.qkv.{kind}"].chunk(3)
            ours[f"{own}.self_attention.linear_qkv.{kind}"] = interleave(q, k, v, vision.num_heads)
    for n in range(text.num_hidden_layers):
        ours |= _layer(source, f"language_model.layers.{n}", f"language.decoder.layers.{n}", text)
    return ours


def _layer(source: dict[str, torch.Tensor], theirs: str, own: str, text: TextConfig) -> dict[str, torch.Tensor]:
    q, k, v = (source[f"{theirs}.self_attn.{x}_proj.weight"] for x in "qkv")
    layer = {
        f"{own}.input_layernorm.weight": source[f"{theirs}.input_layernorm.weight"],
        f"{own}.pre_mlp_layernorm.weight": source[f"{theirs}.post_attention_layernorm.weight"],
        f"{own}.self_attention.linear_qkv.weight": interleave(q, k, v, text.num_key_value_heads),
        f"{own}.self_attention.linear_proj.weight": source[f"{theirs}.self_attn.o_proj.weight"],
        f"{own}.self_attention.q_layernorm.weight": source[f"{theirs}.self_attn.q_norm.weight"],
        f"{own}.self_attention.k_layernorm.weight": source[f"{theirs}.self_attn.k_norm.weight"],
    }
    if not text.num_experts:
        gate, up = source[f"{theirs}.mlp.gate_proj.weight"], source[f"{theirs}.mlp.up_proj.weight"]
        layer[f"{own}.mlp.linear_fc1.weight"] = torch.cat((gate, up))
        layer[f"{own}.mlp.linear_fc2.weight"] = source[f"{theirs}.mlp.down_proj.weight"]
        return layer
    layer[f"{own}.mlp.router.weight"] = source[f"{theirs}.mlp.gate.weight"]
    for e in range(text.num_experts):
        expert = f"{own}.mlp.experts.local_experts.{e}"
        layer[f"{expert}.linear_fc1.weight"] = source[f"{theirs}.mlp.experts.gate_up_proj"][e]
        layer[f"{expert}.linear_fc2.weight"] = source[f"{theirs}.mlp.experts.down_proj"][e]
    return layer


def interleave(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_groups: int) -> torch.Tensor:
    """megatron's order: per key/value group its queries, then its key, then its value."""
    parts = [x.unflatten(0, (num_groups, -1)) for x in (q, k, v)]
    return torch.cat(parts, dim=1).flatten(0, 1)


def relative_errors(own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, float]:
    """||g - g'|| / ||g'|| per tensor; where the reference is all zero, ||g|| itself."""
    assert own.keys() == theirs.keys(), own.keys() ^ theirs.keys()
    errors = {}
    for name, gradient in own.items():
        expected = theirs[name].double()
        error, norm = (gradient.double() - expected).norm().item(), expected.norm().item()
        errors[name] = error / norm if norm else error
    return errors


def _replace(sample: Sample, positions: np.ndarray) -> Sample:
    return Sample(**{**vars(sample), "positions": positions})


def replace_parallel(**changes: str) -> ParallelConfig:
    return dataclasses.replace(PLAIN, **changes)


def replace_batch(batch: Batch, **changes: torch.Tensor) -> Batch:
    return dataclasses.replace(batch, **changes)


def read_model(name: str) -> ModelConfig:
    """A model of configs/model."""
    path = Path(__file__).parents[2] / "configs" / "model" / f"{name}.yaml"
    return dacite.from_dict(ModelConfig, yaml.safe_load(path.read_text()), dacite.Config(strict=True, cast=[tuple]))
