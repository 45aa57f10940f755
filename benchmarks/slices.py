"""How many shards a pack of one lane is read from, and in how many pieces, by `slice`.

    python benchmarks/slices.py [--packs 200]

Five sources (shares 0.3, 0.3, 0.2, 0.1, 0.1) of a million samples in 200 shards each, lengths as in packing.py, 256
lanes, lookahead of 4 sequence lengths; one lane is followed. Per pack: its samples, the shards and slices they lie in
(measured, and as calculated from each source's number of samples in the pack, taken for turns that follow one another),
and what one range request per slice would fetch: from the first to the last sample of the pack in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from math import lgamma

import numpy as np
from packing import LOOKAHEAD, Lengths, lengths_of

from megatron_qwen3vl.data.lanes import Lane, Mixture, Planned
from megatron_qwen3vl.data.shuffle import WINDOW

SAMPLES, SHARDS, LANES = 1_000_000, 200, 256
SHARES = [0.3, 0.3, 0.2, 0.1, 0.1]


class Sliced(Lengths):
    def __init__(self, name: str, lengths: np.ndarray, slice_size: int) -> None:
        super().__init__(name, lengths, slice_size)

    def reason(self, row: int) -> str:
        return ""


def chosen(n: int, k: int) -> float:
    """The logarithm of n over k."""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) if 0 <= k <= n else -np.inf


@cache
def expected_slices(turns: int, slice_size: int) -> float:
    """Of turns of a lane that follow one another, from anywhere in a window: each draws without replacement."""
    if slice_size == 1:
        return turns
    window = WINDOW * slice_size
    total = 0.0
    for offset in range(window):
        left, room = turns, window - offset
        while left:
            part = min(left, room)
            total += WINDOW * (1 - np.exp(chosen(window - slice_size, part) - chosen(window, part)))
            left, room = left - part, window
    return total / window


def measure(slice_size: int, sequence_length: int, packs: int) -> str:
    drawn = [lengths_of(1 << 30, SAMPLES, number) for number in range(len(SHARES))]
    sources = [Sliced(f"source_{number}", lengths, slice_size) for number, lengths in enumerate(drawn)]
    lane = Lane(0, Mixture(sources, SHARES, 0, "s1", LANES, sequence_length), LOOKAHEAD * sequence_length, None)
    figures = []
    for number in range(packs + 10):
        pack, _ = lane.next_pack()
        if number >= 10:  # after the beginning
            figures.append(of_pack(pack, slice_size))
    samples, shards, slices, expected, fetched = np.mean(figures, axis=0)
    return (
        f"  slice {slice_size:>3}: {samples:6.1f} samples in {shards:6.1f} shards, {slices:6.1f} slices "
        f"(calculated {expected:6.1f}): {samples / slices:4.1f} samples a request, of {fetched / slices:4.1f} fetched"
    )


def of_pack(pack: Sequence[Planned], slice_size: int) -> tuple[float, ...]:
    per_shard = SAMPLES // SHARDS
    shards = {(sample.source, sample.row // per_shard) for sample in pack}
    rows: dict[tuple[int, int], list[int]] = {}
    for sample in pack:
        rows.setdefault((sample.source, sample.row // slice_size), []).append(sample.row)
    counts = np.bincount([sample.source for sample in pack])
    expected = sum(expected_slices(int(count), slice_size) for count in counts)
    fetched = sum(max(found) - min(found) + 1 for found in rows.values())
    return len(pack), len(shards), len(rows), expected, fetched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, default=200)
    packs = parser.parse_args().packs
    for sequence_length in (8192, 32768, 262144):
        print(f"{sequence_length} tokens a pack, {packs} packs of one lane of {LANES}")
        for slice_size in (1, 16, 64):
            print(measure(slice_size, sequence_length, packs), flush=True)


if __name__ == "__main__":
    main()
