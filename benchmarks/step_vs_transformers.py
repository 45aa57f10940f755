"""G1: real tokens/s of a training step, ours against transformers' own Qwen3-VL.

    OMP_NUM_THREADS=1 python benchmarks/step_vs_transformers.py [--repeats 5] [--sets 37,61]

A step is forward, backward, clipping and AdamW on one global batch. Both sides have the same weights (exported by
convert/, loaded with from_pretrained), the same samples, the same reweighted loss, fp32, one thread, and take turns;
their losses are compared at every step, so both models must also have learned the same.

    ours          the packs that data/packing.py made of the samples: collate, run_schedule, step_optimizer
    transformers  the same samples sorted by length, in padded batches: sdpa, fused AdamW, its logits only at the
                  columns where some row has a label (logits_to_keep); collation, positions, pixels' normalisation
                  are made before its clock starts

Sample lengths are log-normal; the seed of each set was chosen by the padding of transformers' batches alone. Eight of
ten samples hold pictures, of 8 to 64 tokens each, together a third of all tokens. All text is predicted. The set
"unpadded" gives transformers the samples of the first set one by one: what is left is not padding.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dacite
import numpy as np
import torch
import yaml

from megatron_qwen3vl.batch import IGNORE, Document, Pack, Sample, collate
from megatron_qwen3vl.config.schema import (
    LearningRateScale,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TextConfig,
    VisionConfig,
)
from megatron_qwen3vl.convert.hf import export_hf
from megatron_qwen3vl.data.packing import choose_pack
from megatron_qwen3vl.data.positions import mrope_positions
from megatron_qwen3vl.model.build import build_model
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import Groups, shutdown, start_groups
from megatron_qwen3vl.parallel.layout import Layout
from megatron_qwen3vl.train.forward import prepare_schedule, run_schedule
from megatron_qwen3vl.train.loss import normaliser
from megatron_qwen3vl.train.optimizer import build_optimizer, set_learning_rate, step_optimizer

EXPONENT = 0.5
SINGLE = Path(__file__).parents[1] / "configs" / "parallel" / "single.yaml"
PLAIN = dacite.from_dict(ParallelConfig, yaml.safe_load(SINGLE.read_text()), dacite.Config(strict=True))
LOSS = LossConfig(exponent=EXPONENT, aux_coefficient=None, chunk_size=2048)
ADAM = OptimizerConfig(
    lr=1e-4,
    min_lr=0.0,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.1,
    clip_grad=1.0,
    schedule="constant",
    warmup_steps=0,
    lr_scale=LearningRateScale(1.0, 1.0, 1.0),
    carry=False,
)
# Of the 2B model: feed-forward 3 x width, grouped queries 2:1, tied head. Of the 8B model: the ViT's share of the work.
MODEL = ModelConfig(
    text_config=TextConfig(
        vocab_size=16384,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        initializer_range=0.02,
        rope_theta=5e6,
        mrope_section=(12, 10, 10),
        num_experts=0,
        num_experts_per_tok=0,
        moe_intermediate_size=0,
        norm_topk_prob=True,
        router_aux_loss_coef=0.0,
    ),
    vision_config=VisionConfig(
        depth=4,
        hidden_size=128,
        intermediate_size=512,
        num_heads=2,
        in_channels=3,
        patch_size=16,
        temporal_patch_size=2,
        spatial_merge_size=2,
        out_hidden_size=512,
        num_position_embeddings=2304,
        deepstack_visual_indexes=(0, 1, 2),
        hidden_act="gelu_pytorch_tanh",
        initializer_range=0.02,
        rope_theta=10000.0,
    ),
    tie_word_embeddings=True,
    image_token_id=16380,
    video_token_id=16381,
    vision_start_token_id=16382,
    vision_end_token_id=16383,
)


@dataclass(frozen=True)
class SampleSet:
    """Log-normal lengths; ``batch`` is transformers' batch size (1: no padding at all)."""

    median: int
    sigma: float
    sequence_length: int
    packs: int
    batch: int
    seed: int


SETS = {
    "37": SampleSet(median=120, sigma=0.6, sequence_length=2048, packs=1, batch=8, seed=101),
    "61": SampleSet(median=120, sigma=1.1, sequence_length=2048, packs=1, batch=8, seed=190),
    "unpadded": SampleSet(median=120, sigma=0.6, sequence_length=2048, packs=1, batch=1, seed=101),
}


def make_sample(key: str, length: int, rng: np.random.Generator) -> Sample:
    """Text, and in eight of ten samples pictures for about six tenths of the tokens."""
    grids: list[tuple[int, int, int]] = []
    merged: list[int] = []
    visual = 0.6 * length if rng.random() < 0.8 else 0.0
    while True:
        side, ratio = rng.uniform(3, 7.5), rng.uniform(0.8, 1.25)
        height, width = round(side * ratio), round(side / ratio)
        if sum(merged) + height * width > visual:
            break
        grids.append((1, 2 * height, 2 * width))
        merged.append(height * width)
    words = length - sum(merged) - 2 * len(grids)
    pieces = np.diff([0, *sorted(rng.integers(1, words, size=len(grids))), words])
    ids, starts = [], []
    for piece, tokens in zip(pieces, [*merged, 0], strict=True):
        ids += rng.integers(0, 16000, size=piece).tolist()
        if tokens:
            starts.append(len(ids) + 1)
            special = (MODEL.vision_start_token_id, MODEL.image_token_id, MODEL.vision_end_token_id)
            ids += [special[0], *[special[1]] * tokens, special[2]]
    input_ids, grid = np.array(ids, np.int32), np.array(grids, np.int32).reshape(-1, 3)
    labels = np.append(input_ids[1:], IGNORE).astype(np.int32)
    labels[labels >= 16000] = IGNORE
    num_patches = int(grid.prod(axis=1).sum())
    patches = rng.integers(0, 256, (num_patches, MODEL.vision_config.patch_values), dtype=np.uint8)
    return Sample(
        key=key,
        domain="benchmark",
        input_ids=input_ids,
        labels=labels,
        positions=mrope_positions(len(ids), np.array(starts, np.int64), grid, 2),
        visual_index=np.flatnonzero(input_ids == MODEL.image_token_id).astype(np.int32),
        grids=grid,
        patches=patches,
    )


def plan_packs(chosen: SampleSet) -> list[list[int]]:
    """Lengths of the samples of each pack, as the packing chooses them from a long stream."""
    rng = np.random.default_rng(chosen.seed)
    lengths = np.exp(rng.normal(np.log(chosen.median), chosen.sigma, 4000)).astype(int)
    waiting = lengths[(lengths >= 24) & (lengths <= chosen.sequence_length)][:100].tolist()
    packs = []
    for _ in range(chosen.packs):
        places = set(taken := choose_pack(waiting, chosen.sequence_length))
        packs.append([waiting[place] for place in taken])
        waiting = [length for place, length in enumerate(waiting) if place not in places]
    return packs


def sorted_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Places in ``lengths``, by falling length, in batches of ``size``."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    return [order[start : start + size] for start in range(0, len(order), size)]


def padding_of(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    return 1 - sum(lengths) / sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)


def make_pack(lane: int, samples: Sequence[Sample], sequence_length: int) -> Pack:
    ends = np.cumsum([0, *(len(s.input_ids) for s in samples)])
    padding = sequence_length - int(ends[-1])
    pad = np.zeros(padding, np.int32)
    return Pack(
        lane=lane,
        documents=tuple(Document(s.key, s.domain, s.num_labels, None) for s in samples),
        input_ids=np.concatenate([*(s.input_ids for s in samples), pad]),
        labels=np.concatenate([*(s.labels for s in samples), pad + IGNORE]),
        positions=np.concatenate([*(s.positions for s in samples), np.zeros((3, padding), np.int32)], axis=1),
        cu_seqlens=(np.append(ends, sequence_length) if padding else ends).astype(np.int32),
        num_padding=padding,
        visual_index=np.concatenate([s.visual_index + start for s, start in zip(samples, ends, strict=False)]),
        grids=np.concatenate([s.grids for s in samples]),
        patches=np.concatenate([s.patches for s in samples]),
    )


class Ours:
    """The trainer's own calls, without its data, metrics and files."""

    def __init__(self, packs: Sequence[Pack], groups: Groups, folder: Path) -> None:
        self.packs, self.groups = packs, groups
        self.chunks = build_model(MODEL, PLAIN, groups, "float32", LOSS, ("vision", "merger", "language"), seed=1)
        prepare_schedule(self.chunks)
        self.optimizer = build_optimizer(self.chunks, ADAM, "float32")
        set_learning_rate(self.optimizer, ADAM.lr)
        export_hf(self.chunks, MODEL, None, {}, folder)

    def step(self) -> float:
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        total = normaliser((d.num_labels for pack in self.packs for d in pack.documents), EXPONENT)
        batches = [collate([pack], EXPONENT, self.groups.device.device) for pack in self.packs]
        report = run_schedule(self.chunks, batches, total, self.groups.dp_size)
        step_optimizer(self.optimizer, self.groups)
        weighted = [
            document.num_labels**-EXPONENT * loss
            for part in report.losses
            for document, loss in zip(part.batch.documents, part.document_losses.tolist(), strict=True)
            if document.num_labels
        ]
        return sum(weighted) / total


@dataclass(frozen=True)
class PaddedBatch:
    """transformers' inputs, and what the loss needs at the columns that any row predicts from."""

    inputs: dict[str, torch.Tensor]
    at_labels: torch.Tensor  # bool [B, kept]
    labels: torch.Tensor  # int64 [N]
    weights: torch.Tensor  # float32 [N]


class Transformers:
    """Qwen3VLForConditionalGeneration as it comes, on padded batches sorted by length."""

    def __init__(self, samples: Sequence[Sample], batches: Sequence[Sequence[int]], folder: Path) -> None:
        from transformers import Qwen3VLForConditionalGeneration

        self.model = Qwen3VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        ).train()
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [{"params": decayed, "weight_decay": ADAM.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=ADAM.lr, betas=ADAM.betas, eps=ADAM.eps, fused=True)
        self.total = normaliser((s.num_labels for s in samples), EXPONENT)
        self.batches = [self._pad([samples[place] for place in batch]) for batch in batches]

    def _pad(self, samples: Sequence[Sample]) -> PaddedBatch:
        shape = (len(samples), max(len(s.input_ids) for s in samples))
        ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        labels, weights = torch.full(shape, IGNORE), torch.zeros(shape)
        for row, sample in enumerate(samples):
            span = slice(len(sample.input_ids))
            ids[row, span] = torch.from_numpy(sample.input_ids).long()
            labels[row, span] = torch.from_numpy(sample.labels).long()
            mask[row, span] = 1
            weights[row] = max(sample.num_labels, 1) ** -EXPONENT
        inputs = {"input_ids": ids, "attention_mask": mask}
        grids = np.concatenate([s.grids for s in samples])
        kinds = (ids == MODEL.image_token_id).int()
        if len(grids):
            patches = np.concatenate([s.patches for s in samples])
            inputs["pixel_values"] = (torch.from_numpy(patches).float() / 255 - 0.5) / 0.5
            inputs["image_grid_thw"] = torch.from_numpy(grids).long()
        inputs["position_ids"], _ = self.model.model.get_rope_index(
            ids, kinds, image_grid_thw=inputs.get("image_grid_thw"), attention_mask=mask
        )
        columns = (labels != IGNORE).any(dim=0).nonzero().squeeze(1)
        inputs["logits_to_keep"] = columns
        at_labels = labels[:, columns] != IGNORE
        kept = labels[:, columns][at_labels]
        return PaddedBatch(inputs, at_labels, kept, weights[:, columns][at_labels])

    def step(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = 0.0
        for batch in self.batches:
            logits = self.model(**batch.inputs, use_cache=False).logits[batch.at_labels]
            losses = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
            loss = (losses * batch.weights).sum() / self.total
            loss.backward()
            loss_sum += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), ADAM.clip_grad, foreach=True)
        self.optimizer.step()
        return loss_sum


def timed(step: Callable[[], float]) -> tuple[float, float, float]:
    """(loss, wall seconds, CPU seconds)."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step()
    return loss, time.perf_counter() - wall, time.process_time() - cpu


def compare(name: str, repeats: int, groups: Groups) -> None:
    chosen = SETS[name]
    rng = np.random.default_rng(chosen.seed)
    packed = [
        [make_sample(f"{lane}/{n}", length, rng) for n, length in enumerate(lengths)]
        for lane, lengths in enumerate(plan_packs(chosen))
    ]
    samples = [sample for pack in packed for sample in pack]
    lengths = [len(s.input_ids) for s in samples]
    batches = sorted_batches(lengths, chosen.batch)
    packs = [make_pack(lane, pack, chosen.sequence_length) for lane, pack in enumerate(packed)]
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(packs, groups, Path(folder) / "model")
        theirs = Transformers(samples, batches, Path(folder) / "model")
    visual, labels = sum(len(s.visual_index) for s in samples), sum(s.num_labels for s in samples)
    print(
        f"set {name}: {len(samples)} samples of {min(lengths)}-{max(lengths)} tokens, {sum(lengths)} in all, "
        f"{visual} visual, {labels} labels; padding: ours {padding_of_packs(packs):.2%} of {len(packs)} packs, "
        f"transformers {padding_of(lengths, batches):.1%} in batches of {[len(b) for b in batches]}"
    )
    rows, worst = [], 0.0
    for repeat in range(repeats + 1):
        sides = (ours, theirs) if repeat % 2 else (theirs, ours)
        results = {side: timed(side.step) for side in sides}
        own, other = results[ours], results[theirs]
        worst = max(worst, abs(own[0] - other[0]) / other[0])
        if repeat:  # the first step warms both up
            rows.append((own[1], other[1], own[2], other[2]))
    table = np.array(rows)
    ratios = np.stack([table[:, 1] / table[:, 0], table[:, 3] / table[:, 2]], axis=1)
    print(f"  loss {results[ours][0]:.6f}; largest relative difference in {repeats + 1} steps {worst:.1e}")
    for what, values, column in (("wall", table[:, :2], 0), ("CPU", table[:, 2:], 1)):
        low, mid = values.min(axis=0), np.median(values, axis=0)
        print(
            f"  {what:4} seconds, minimum / median: ours {low[0]:.2f} / {mid[0]:.2f}, "
            f"transformers {low[1]:.2f} / {mid[1]:.2f}; tokens/s x {low[1] / low[0]:.2f} / {mid[1] / mid[0]:.2f} "
            f"(turn by turn {ratios[:, column].min():.2f} to {ratios[:, column].max():.2f})"
        )
    if worst > 1e-5:
        raise SystemExit("the losses differ: this is not the same step")


def padding_of_packs(packs: Sequence[Pack]) -> float:
    return sum(pack.num_padding for pack in packs) / sum(len(pack.input_ids) for pack in packs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sets", default="37,61")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    groups = start_groups(Layout.from_config(PLAIN, 1), start_device("cpu"))
    for name in arguments.sets.split(","):
        compare(name, arguments.repeats, groups)
    shutdown()


if __name__ == "__main__":
    main()
