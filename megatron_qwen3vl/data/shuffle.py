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
        text = f"{seed}\0{stage}\0{source}".encode()
        return cls(num_samples, int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))

    def index(self, turns: np.ndarray) -> np.ndarray:
        """Turns g, int64 [k], in any order -> samples permutation_epoch[g % n], epoch = g // n, int64 [k]."""
        epoch, place = np.divmod(turns.astype(np.uint64), np.uint64(self.num_samples))
        tweak = _mix(_mix((epoch + np.uint64(1)) * _GOLDEN) + np.uint64(self.key))
        out = self._network(place, tweak)
        outside = np.flatnonzero(out >= self.num_samples)
        while outside.size:
            out[outside] = self._network(out[outside], tweak[outside])
            outside = outside[out[outside] >= self.num_samples]
        return out.astype(np.int64)

    def _network(self, x: np.ndarray, tweak: np.ndarray) -> np.ndarray:
        bits = (self.num_samples - 1).bit_length()
        low_bits = np.uint64(bits // 2)
        low_mask = np.uint64((1 << bits // 2) - 1)
        high_mask = np.uint64((1 << bits - bits // 2) - 1)
        high, low = x >> low_bits, x & low_mask
        for round_index in range(ROUNDS):
            tweak = tweak + _GOLDEN
            if round_index % 2:
                low = low ^ (_mix(high + tweak) & low_mask)
            else:
                high = high ^ (_mix(low + tweak) & high_mask)
        return (high << low_bits) | low
