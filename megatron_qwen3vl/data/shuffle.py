"""A random order of n samples without a list of n numbers.

A Feistel network is a bijection of the numbers of b bits for any round function. With b the bits of n - 1 its domain
is less than twice n; an answer outside range(n) is sent through again until it falls inside (cycle walking), which
keeps it a bijection of range(n) (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). The round function
is the finaliser of splitmix64. Everything is 64-bit integer arithmetic: the same on every machine and Python.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

ROUNDS = 8
WINDOW = 4  # slices of a lane that are shuffled together
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 on uint64 arrays (wraps around, as it must)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Shuffle:
    """The endless sequence of a source: one permutation of range(num_samples) after another, one per epoch."""

    num_samples: int
    key: int

    @classmethod
    def of(cls, seed: int, stage: str, source: str, num_samples: int) -> Shuffle:
        return cls(num_samples, _key(f"{seed}\0{stage}\0{source}"))

    def index(self, turns: np.ndarray) -> np.ndarray:
        """Turns g, int64 [k], in any order -> samples permutation_epoch[g % n], epoch = g // n, int64 [k]."""
        epoch, place = np.divmod(turns.astype(np.uint64), np.uint64(self.num_samples))
        tweak = _mix(_mix((epoch + np.uint64(1)) * _GOLDEN) + np.uint64(self.key))
        return _permute(place, np.full(len(place), self.num_samples, np.uint64), tweak)


@dataclass(frozen=True)
class Order:
    """Which sample a lane's turn is, of a source of ``num_samples`` that is dealt out in slices of ``slice_size``.

    The slices, each of neighbouring samples, are shuffled anew in every epoch and dealt to the lanes one by one: lane l
    gets the slices l, l + V, l + 2V, ... of the endless sequence. WINDOW of a lane's slices that follow one another in
    an epoch are shuffled together. A source's last slice is as long as the others; what it lacks are turns without a
    sample. With slices of one sample a lane's order is that of Shuffle itself.
    """

    num_samples: int
    slice_size: int
    num_lanes: int
    key: int
    slices: Shuffle

    @classmethod
    def of(cls, seed: int, stage: str, source: str, num_samples: int, slice_size: int, num_lanes: int) -> Order:
        slices = Shuffle.of(seed, stage, source, -(-num_samples // slice_size))
        return cls(num_samples, slice_size, num_lanes, _key(f"{seed}\0{stage}\0{source}\0windows"), slices)

    @property
    def turns_per_epoch(self) -> int:
        """Of all lanes together, those without a sample included."""
        return self.slices.num_samples * self.slice_size

    def index(self, lane: int | np.ndarray, turns: np.ndarray) -> np.ndarray:
        """Turns of a lane, or each of another (int64 [k]), in any order, int64 [k] -> samples, int64 [k];
        ``num_samples`` where a turn has none."""
        number, offset = np.divmod(turns, self.slice_size)
        if self.slice_size > 1:
            number, offset = self._shuffle_window(lane, turns, number)
        rows = self.slices.index(lane + self.num_lanes * number) * self.slice_size + offset
        return np.minimum(rows, self.num_samples)

    def epoch(self, lane: int, turn: int) -> int:
        return (lane + self.num_lanes * (turn // self.slice_size)) // self.slices.num_samples

    def _shuffle_window(
        self, lane: int | np.ndarray, turns: np.ndarray, number: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Turns that fall to a lane's slice ``number`` in sequence -> the slice and the place in it that they get."""
        per_epoch, lanes = self.slices.num_samples, self.num_lanes
        epoch = (lane + lanes * number) // per_epoch
        first = -((lane - epoch * per_epoch) // lanes)  # the lane's first slice of this epoch, and of the next
        end = -((lane - (epoch + 1) * per_epoch) // lanes)
        start = first + (number - first) // WINDOW * WINDOW
        size = (np.minimum(start + WINDOW, end) - start) * self.slice_size
        of_lane = _mix((np.atleast_1d(lane) + 1).astype(np.uint64) * _GOLDEN) + np.uint64(self.key)
        tweak = _mix(_mix((start.astype(np.uint64) + np.uint64(1)) * _GOLDEN) + of_lane)
        place = _permute((turns - start * self.slice_size).astype(np.uint64), size.astype(np.uint64), tweak)
        return start + place // self.slice_size, place % self.slice_size


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _permute(x: np.ndarray, size: np.ndarray, tweak: np.ndarray) -> np.ndarray:
    """Numbers below ``size``, with a permutation of range(size) for each ``tweak``, uint64 [k] -> int64 [k]."""
    bits = np.frexp((size - np.uint64(1)).astype(np.float64))[1].astype(np.uint64)  # the bit length: sizes below 2^53
    out = _network(x, bits, tweak)
    outside = np.flatnonzero(out >= size)
    while outside.size:
        out[outside] = _network(out[outside], bits[outside], tweak[outside])
        outside = outside[out[outside] >= size[outside]]
    return out.astype(np.int64)


def _network(x: np.ndarray, bits: np.ndarray, tweak: np.ndarray) -> np.ndarray:
    """Eight rounds on numbers of ``bits`` bits, the lower half rounded down."""
    one = np.uint64(1)
    low_bits = bits // np.uint64(2)
    low_mask, high_mask = (one << low_bits) - one, (one << (bits - low_bits)) - one
    high, low = x >> low_bits, x & low_mask
    for round_index in range(ROUNDS):
        tweak = tweak + _GOLDEN
        if round_index % 2:
            low = low ^ (_mix(high + tweak) & low_mask)
        else:
            high = high ^ (_mix(low + tweak) & high_mask)
    return (high << low_bits) | low
