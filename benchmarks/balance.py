"""G3: how evenly work is shared out, by the code that shares it out. Only costs are computed; the model is the 8B one.

    python benchmarks/balance.py [--steps 10]

Documents: text of log-normal length, median 600, sigma 1.3 as in benchmarks/packing.py; those longer than a pack are
left out. With pictures, every third document has one beside: log-normal in patches, median 1,024, sigma 1, 64 to
16,384, four patches a token. Packs come from the loader's own lanes; 16 data-parallel ranks; a micro-batch is one pack.

    data     forward operations of a step's packs: the busiest rank over the mean, in order of arrival and by cost; the
             bound is the dearest pack with the cheapest others beside it, which no assignment of whole packs can beat
    context  causal attention of a pack: the busiest context-parallel rank over the mean
    vision   the ViT's work of a step: the busiest rank over the mean
    waiting  the same where each micro-batch waits for the busiest of the ranks that share its images, which is
             vision_balance in metrics.jsonl; the bound is what sharing whole images in these groups cannot beat
    step     the language model's work and the ViT's together, with waiting
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from packing import LOOKAHEAD, SHORTEST, Lengths, lengths_of

from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.data.lanes import Lane, Mixture, Planned
from megatron_qwen3vl.data.loader import PackCost
from megatron_qwen3vl.model.images import Pictures, assign, image_cost
from megatron_qwen3vl.parallel.balance import assign_packs, share_packs
from megatron_qwen3vl.parallel.sequence import cut_documents
from megatron_qwen3vl.train.assemble import pack_cost

MODEL = load_config(["model=8b", "run.dir=unused"]).model
RANKS = 16
PACKS = {8192: 256, 32768: 128, 262144: 64}  # of a step
DOCUMENTS = 200_000


class Documents(Lengths):
    """Texts, with a picture beside every third one if so wished."""

    def __init__(self, sequence_length: int, with_pictures: bool) -> None:
        text = lengths_of(sequence_length, DOCUMENTS, seed=0)
        draw = np.random.default_rng(1)
        patches = np.exp(draw.normal(np.log(1024), 1.0, len(text))).clip(64, 16384).astype(np.int32) // 4 * 4
        patches[draw.random(len(text)) > 1 / 3] = 0
        patches *= with_pictures
        lengths = text + patches // 4
        fitting = (lengths >= SHORTEST) & (lengths <= sequence_length)
        super().__init__("documents", lengths[fitting])
        self.patches = patches[fitting]


@dataclass(frozen=True)
class Steps:
    """The packs of each step: of each its documents' lengths, its pictures' patches, and both costs."""

    lengths: list[list[list[int]]]
    patches: list[list[list[int]]]
    language: list[list[float]]
    vision: list[list[float]]


def plan(source: Documents, sequence_length: int, num_steps: int, cost: PackCost) -> Steps:
    count = PACKS[sequence_length]
    mixture = Mixture([source], [1.0], 0, "s1", count, sequence_length)
    lanes = [Lane(number, mixture, LOOKAHEAD * sequence_length, None) for number in range(count)]
    steps = Steps([], [], [], [])
    for _ in range(num_steps):
        packs: list[list[Planned]] = [lane.next_pack()[0] for lane in lanes]
        steps.lengths.append([[sample.length for sample in pack] for pack in packs])
        patches = [[int(source.patches[sample.row]) for sample in pack] for pack in packs]
        steps.patches.append([[number for number in pack if number] for pack in patches])
        steps.language.append([cost.language(pack) for pack in packs])
        steps.vision.append([cost.vision(pack, [source]) for pack in packs])
    return steps


def data_balance(steps: Steps) -> str:
    arrival, by_cost, bounds = [], [], []
    for costs in steps.language:
        ranks = np.array(costs).reshape(RANKS, -1).sum(1)
        arrival.append(ranks.max() / ranks.mean())
        shared = np.array([sum(costs[pack] for pack in packs) for packs in assign_packs(costs, RANKS)])
        by_cost.append(shared.max() / shared.mean())
        cheapest = sum(sorted(costs)[: len(costs) // RANKS - 1])
        bounds.append(max(1.0, (max(costs) + cheapest) / ranks.mean()))
    before = f"arrival {np.mean(arrival):.3f} (worst {max(arrival):.3f})"
    after = f"by cost {np.mean(by_cost):.4f} (worst {max(by_cost):.4f})"
    over = np.max(np.array(by_cost) / bounds)
    return f"{before}, {after}, bound {np.mean(bounds):.4f} (worst {max(bounds):.4f}); at most {over:.4f} times it"


def context_balance(steps: Steps, sequence_length: int, num_ranks: int) -> str:
    found = []
    for step in steps.lengths[:10]:
        for lengths in step[:16]:
            padding = sequence_length - sum(lengths)
            pieces = cut_documents([*lengths, *[padding] * bool(padding)], num_ranks)
            pairs = [sum(_pairs(p.stop - p.document) - _pairs(p.start - p.document) for p in own) for own in pieces]
            found.append(max(pairs) / np.mean(pairs))
    return f"cp {num_ranks}: {np.mean(found):.4f} (worst {max(found):.4f})"


def _pairs(length: int) -> int:
    return length * (length + 1) // 2


def vision_balance(steps: Steps, num_cp: int, vision_dp: int, cost: PackCost) -> list[float]:
    """[vision, waiting, its bound, step], means over the steps."""
    found = []
    # The ViT's operations per multiply-add of image_cost, so that both kinds of work add up.
    scale = cost.patch * 1024 / image_cost(MODEL.vision_config, 1024)
    for patches, language, vision in zip(steps.patches, steps.language, steps.vision, strict=True):
        shared = share_packs(language, vision, RANKS, vision_dp)
        groups = [shared[first : first + vision_dp] for first in range(0, RANKS, vision_dp)]
        busiest, waiting, bounds, whole, total = [], [], [], [], 0.0
        for group in groups:
            waits, least, done = 0.0, 0.0, np.zeros(vision_dp * num_cp)
            for packs in zip(*group, strict=True):
                plan = assign([_pictures(patches[pack]) for pack in packs], MODEL.vision_config, num_cp, done)
                done += plan.costs
                waits += max(plan.costs)
                largest = max((image_cost(MODEL.vision_config, n) for n in plan.patch_counts.tolist()), default=0.0)
                least += max(largest, float(np.mean(plan.costs)))
            total += done.sum()
            busiest.append(done.max())
            waiting.append(waits)
            bounds.append(least)
            whole.append(waits * scale + max(sum(language[pack] for pack in packs) for packs in group) / num_cp)
        mean = total / RANKS / num_cp
        step_mean = mean * scale + sum(language) / RANKS / num_cp
        found.append((max(busiest) / mean, max(waiting) / mean, np.mean(bounds) / mean, max(whole) / step_mean))
    return np.array(found).mean(axis=0).tolist()


def _pictures(patches: Sequence[int]) -> Pictures:
    grids = np.array([[1, 2, count // 2] for count in patches], np.int64).reshape(-1, 3)
    return Pictures(grids, np.zeros(int(sum(patches)) // 4, np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    num_steps = parser.parse_args().steps
    cost = pack_cost(MODEL)
    for sequence_length, packs in PACKS.items():
        print(f"{sequence_length} positions, {packs} packs a step, {RANKS} data-parallel ranks, {num_steps} steps")
        text = plan(Documents(sequence_length, with_pictures=False), sequence_length, num_steps, cost)
        print(f"  data     {data_balance(text)}", flush=True)
        print("  context ", "; ".join(context_balance(text, sequence_length, ranks) for ranks in (2, 4, 8)), flush=True)
        seen = plan(Documents(sequence_length, with_pictures=True), sequence_length, num_steps, cost)
        images = np.mean([len(pack) for step in seen.patches for pack in step])
        share = np.sum(seen.vision) / (np.sum(seen.vision) + np.sum(seen.language))
        print(f"  vision   {images:.1f} images a pack, the ViT's share of the work {share:.0%}")
        for num_cp in (1, 2):
            for vision_dp in (1, 2, 4, 8, 16):
                balance, waiting, bound, step = vision_balance(seen, num_cp, vision_dp, cost)
                print(
                    f"    cp {num_cp}, vision_dp {vision_dp:2}: vision {balance:.3f}, waiting {waiting:.3f} "
                    f"(bound {bound:.3f}), step {step:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
