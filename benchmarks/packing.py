"""G2: padding, time per pack and waiting of the carry-over packing on a heavy-tailed mix.

    python benchmarks/packing.py [--packs 2000]

Lengths are log-normal, rounded down: median 600, sigma 1.3 (mean about 1,400, one in a hundred above 12,000), at least
16; those above the sequence length are left out, as the loader does. The lookahead is 4 sequence lengths. Against it,
on the same lengths: buffers of 16 samples, best fit in decreasing order, flushed. Seconds are of this process, each the
minimum and the median over blocks of a tenth of the packs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np

from megatron_qwen3vl.batch import Sample
from megatron_qwen3vl.data.lanes import Lane, Mixture
from megatron_qwen3vl.data.packing import choose_pack
from megatron_qwen3vl.data.survey import Survey, survey_of

MEDIAN, SIGMA, SHORTEST, LOOKAHEAD = 600, 1.3, 16, 4


def lengths_of(sequence_length: int, count: int, seed: int) -> np.ndarray:
    drawn = np.exp(np.random.default_rng(seed).normal(np.log(MEDIAN), SIGMA, count)).astype(np.int32)
    return drawn[(drawn >= SHORTEST) & (drawn <= sequence_length)]


class Lengths:
    """A source that has lengths and nothing else."""

    def __init__(self, name: str, lengths: np.ndarray, slice_size: int = 1) -> None:
        self.name, self.lengths, self.patches = name, lengths, lengths
        self.slice_size = slice_size

    def __len__(self) -> int:
        return len(self.lengths)

    def survey(self, sequence_length: int) -> Survey:
        return survey_of(self.lengths, sequence_length)

    def key(self, row: int) -> str:
        return f"{self.name}/{row}"

    def domain(self, row: int) -> str:
        return self.name

    def reason(self, row: int) -> str:
        raise NotImplementedError

    def read(self, row: int, pixels: bool) -> Sample:
        raise NotImplementedError


def carry_over(stream: Iterator[int], sequence_length: int, packs: int) -> str:
    waiting: list[int] = []
    arrived: list[int] = []
    waiting_tokens, padding, counts, waits = 0, 0, [], []
    seconds = np.zeros(10)
    for number in range(packs):
        while waiting_tokens < LOOKAHEAD * sequence_length:
            waiting.append(next(stream))
            arrived.append(number)
            waiting_tokens += waiting[-1]
        counts.append(len(waiting))
        began = time.process_time()
        pack = choose_pack(waiting, sequence_length)
        seconds[number * 10 // packs] += time.process_time() - began
        waits.append(max(number - arrived[place] for place in pack))
        filled = sum(waiting[place] for place in pack)
        padding += sequence_length - filled
        waiting_tokens -= filled
        gone = set(pack)
        waiting = [length for place, length in enumerate(waiting) if place not in gone]
        arrived = [then for place, then in enumerate(arrived) if place not in gone]
    per_pack = seconds / packs * 10 * 1e3
    return (
        f"{padding / packs / sequence_length:8.4%} padding  "
        f"{per_pack.min():.3f} / {np.median(per_pack):.3f} ms a pack  "
        f"waiting: mean {np.mean(counts):.0f}, most {max(counts)} samples, longest {max(waits)} packs"
    )


def flushed_best_fit(stream: Iterator[int], sequence_length: int, packs: int) -> str:
    rooms: list[int] = []
    while len(rooms) < packs:
        buffer: list[int] = []
        for length in sorted((next(stream) for _ in range(16)), reverse=True):
            fitting = [place for place, room in enumerate(buffer) if room >= length]
            if fitting:
                buffer[min(fitting, key=lambda place: buffer[place])] -= length
            else:
                buffer.append(sequence_length - length)
        rooms += buffer
    return f"{sum(rooms) / len(rooms) / sequence_length:8.2%} padding"


def whole_planning(sequence_length: int, packs: int, slice_size: int) -> str:
    """Five sources: shuffling, mixing and packing together."""
    sources = [Lengths(f"source_{n}", lengths_of(sequence_length, 100_000, n), slice_size) for n in range(5)]
    mixture = Mixture(sources, [0.3, 0.3, 0.2, 0.1, 0.1], 0, "s1", 4, sequence_length)
    lanes = [Lane(number, mixture, LOOKAHEAD * sequence_length, None) for number in range(4)]
    for lane in lanes:
        lane.next_pack()
    seconds, samples = [], 0
    for _ in range(10):
        began = time.process_time()
        for _ in range(max(1, packs // 40)):
            for lane in lanes:
                samples += len(lane.next_pack()[0])
        seconds.append((time.process_time() - began) / (4 * max(1, packs // 40)) * 1e3)
    return f"{min(seconds):.3f} / {np.median(seconds):.3f} ms a pack"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, default=2000)
    packs = parser.parse_args().packs
    for sequence_length in (8192, 32768, 262144):
        lengths = lengths_of(sequence_length, 400 * packs + 50_000, seed=0)
        shares = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1]
        quantiles = np.quantile(lengths, shares).astype(int).tolist()
        print(f"{sequence_length}: {packs} packs; lengths mean {lengths.mean():.0f}, quantiles {shares}: {quantiles}")
        print("  carry-over               ", carry_over(iter(lengths.tolist()), sequence_length, packs))
        for slice_size in (1, 16):
            print(f"  whole planning, slice {slice_size:<2}", whole_planning(sequence_length, packs // 10, slice_size))
        print("  flushed buffers          ", flushed_best_fit(iter(lengths.tolist()), sequence_length, packs))


if __name__ == "__main__":
    main()
