"""Carry-over packing on lengths alone: which of the waiting samples make the next pack.

A pack takes samples in order of arrival while plenty of room is left, then closes with the waiting samples whose sum
comes closest to the room, older ones preferred (subset sum over the bits of an integer). What does not go into this
pack waits for the next one; nothing is ever flushed half full. Since each pack begins with the oldest, a sample with p
older ones waiting is used within p + 1 packs, and since most of a pack is taken in order of arrival, few wait long.

Taking the largest that fits all the way fills packs as well, but short samples then pile up: at 262,144 tokens with a
lookahead of four, 17,000 of them waited where 750 wait here (benchmarks/packing.py has the distribution).
"""

from __future__ import annotations

from collections.abc import Sequence

CLOSING_ROOM = 8192  # tokens that are left for the closing samples
CLOSING_CHOICE = 64  # waiting samples that the closing chooses from, the oldest that fit


def choose_pack(lengths: Sequence[int], sequence_length: int) -> list[int]:
    """The places in ``lengths`` (waiting samples by arrival, each 1..sequence_length long) of one pack, as taken.

    Their lengths sum to at most ``sequence_length``; the first place is 0, the oldest.
    """
    taken, room = [0], sequence_length - lengths[0]
    waiting = []
    for place in range(1, len(lengths)):
        if room - lengths[place] >= CLOSING_ROOM:
            taken.append(place)
            room -= lengths[place]
        else:
            waiting.append(place)
    while room:
        fitting = [place for place in waiting if lengths[place] <= room][:CLOSING_CHOICE]
        if not fitting:
            break
        chosen = [fitting[k] for k in _closest_sum([lengths[place] for place in fitting], room)]
        taken += chosen
        room -= sum(lengths[place] for place in chosen)
        used = set(chosen)
        waiting = [place for place in waiting if place not in used]
    return taken


def _closest_sum(lengths: Sequence[int], room: int) -> list[int]:
    """Places whose lengths have the largest possible sum of at most ``room``, early ones where there is a choice."""
    mask = (1 << room + 1) - 1
    sums = [1]  # bit n of sums[k]: n is a sum of some of the first k lengths
    for length in lengths:
        sums.append((sums[-1] | sums[-1] << length) & mask)
        if sums[-1] >> room:
            break
    left = sums[-1].bit_length() - 1
    chosen = []
    for place in reversed(range(len(sums) - 1)):
        if not sums[place] >> left & 1:
            chosen.append(place)
            left -= lengths[place]
    return chosen[::-1]
