"""Some packs of a mixture as a run would read them, and pictures out of patches: to be looked at by a person."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from megatron_qwen3vl.batch import Pack
from megatron_qwen3vl.config.schema import VisionConfig
from megatron_qwen3vl.data.inspect import Packing
from megatron_qwen3vl.data.lanes import Lane, Mixture
from megatron_qwen3vl.data.loader import to_pack
from megatron_qwen3vl.data.source import Source
from megatron_qwen3vl.data.workers import read_planned

_LOOKED_AT = 20_000  # samples of a source, for those of a domain
_READABLE = 32_768  # tokens of a sample that is shown for itself


def first_packs(
    sources: Sequence[Source], weights: Sequence[float], packing: Packing, count: int, pad_id: int
) -> list[Pack]:
    """What a run's loader hands out first: a pack of each lane in turn.

    Raises:
        UserError: a source in which no sample fits.
        ReadError: a sample's shard cannot be read.
    """
    length = packing.sequence_length
    mixture = Mixture(sources, weights, packing.seed, packing.stage, packing.lanes, length)
    numbers = range(min(packing.lanes, count))
    lanes = [Lane(number, mixture, packing.lookahead * length, None) for number in numbers]
    packs = []
    for place in range(count):
        lane = place % len(lanes)
        planned, _ = lanes[lane].next_pack()
        samples = [read_planned(sources[source], row, tokens, True, pad_id) for source, row, tokens in planned]
        packs.append(to_pack(lane, samples, length, pad_id))
    return packs


def samples_of_other_domains(
    sources: Sequence[Source], seen: Collection[str], each: int, pad_id: int
) -> list[Pack]:
    """The first ``each`` samples of every domain that is not in ``seen``, each as a pack of its own length."""
    taken: dict[str, int] = dict.fromkeys(seen, each)
    packs = []
    for source in sources:
        readable = np.flatnonzero((source.lengths > 0) & (source.lengths <= _READABLE))[:_LOOKED_AT].tolist()
        for row in readable:
            domain = source.domain(row)
            if taken.get(domain, 0) < each:
                taken[domain] = taken.get(domain, 0) + 1
                length = int(source.lengths[row])
                packs.append(to_pack(0, [read_planned(source, row, length, True, pad_id)], length, pad_id))
            if all(taken.get(name, 0) >= each for name in source.domains):
                break
    return packs


def frames_of(patches: np.ndarray, rows: int, columns: int, vision: VisionConfig) -> np.ndarray:
    """``vision.make_patches`` backwards for one image or temporal group.

    Args:
        patches: uint8 [rows * columns, C].

    Returns:
        uint8 [temporal_patch_size, height, width, channels].
    """
    size, merge, depth = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    # block row, block column, row in block, column in block, channel, time, row, column
    blocks = patches.reshape(rows // merge, columns // merge, merge, merge, -1, depth, size, size)
    ordered = blocks.transpose(5, 0, 2, 6, 1, 3, 7, 4)
    return ordered.reshape(depth, rows * size, columns * size, -1)
