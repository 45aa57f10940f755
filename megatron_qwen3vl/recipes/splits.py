"""Which split a made-up sample belongs to, by what it shows, so that no held-out picture is ever drawn for training."""

from __future__ import annotations

import zlib

HELD_OUT_ONE_IN = 8


def belongs(facts: str, held_out: bool) -> bool:
    """Whether a sample with these ``facts`` (everything that makes its answers what they are) is of this split.

    A builder draws until its sample belongs. The two splits are disjoint in facts whatever the recipe's seed is.
    """
    return (zlib.crc32(facts.encode()) % HELD_OUT_ONE_IN == 0) == held_out
