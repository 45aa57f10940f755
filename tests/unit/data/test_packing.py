from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3vl.data import packing
from megatron_qwen3vl.data.packing import choose_pack

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(LENGTHS, st.integers(40, 90))
def test_a_pack_begins_with_the_oldest_fits_and_closes_as_full_as_can_be(lengths: list[int], room: int) -> None:
    pack = choose_pack(lengths, room)
    filled = sum(lengths[place] for place in pack)
    assert pack[0] == 0 and len(set(pack)) == len(pack) and filled <= room
    others = range(1, len(lengths))
    subsets = (s for k in range(len(lengths)) for s in combinations(others, k))
    sums = (lengths[0] + sum(lengths[place] for place in subset) for subset in subsets)
    assert filled == max(total for total in sums if total <= room)


def test_the_older_of_two_equally_good_samples_goes_first() -> None:
    assert choose_pack([5, 3, 3, 3, 2], 10) == [0, 1, 4]
    assert choose_pack([4, 6, 6], 10) == [0, 1]


def test_long_packs_take_in_order_of_arrival_and_keep_few_waiting() -> None:
    sequence_length = 32768
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(6.4, 1.3, 12000)).astype(int), 16, sequence_length).tolist()
    waiting: list[tuple[int, int]] = []  # length, pack at arrival
    arrived, padding, longest_wait = 0, [], 0
    while True:
        while sum(length for length, _ in waiting) < 4 * sequence_length and arrived < len(lengths):
            waiting.append((lengths[arrived], len(padding)))
            arrived += 1
        if arrived == len(lengths):
            break
        pack = choose_pack([length for length, _ in waiting], sequence_length)
        longest_wait = max(longest_wait, *(len(padding) - waiting[place][1] for place in pack))
        padding.append(sequence_length - sum(waiting[place][0] for place in pack))
        taken = set(pack)
        waiting = [item for place, item in enumerate(waiting) if place not in taken]
    assert len(padding) > 400
    assert np.mean(padding) / sequence_length < 0.0015
    assert longest_wait <= 12
    assert len(waiting) < 400


def test_closing_goes_on_beyond_its_first_choice() -> None:
    tiny = [1] * (3 * packing.CLOSING_CHOICE)
    assert len(choose_pack(tiny, len(tiny))) == len(tiny)
