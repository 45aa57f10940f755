"""Sharing out packs: every pack once, equal counts, never worse than the longest-first bound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3vl.parallel.balance import assign_packs, share_packs


@settings(max_examples=100, deadline=None)
@given(
    ranks=st.integers(1, 8),
    room=st.integers(1, 6),
    costs=st.lists(st.floats(0.0, 1e6, allow_nan=False), min_size=48, max_size=48),
)
def test_every_pack_once_in_equal_counts(ranks: int, room: int, costs: list[float]) -> None:
    costs = costs[: ranks * room]
    shared = assign_packs(costs, ranks)
    assert [len(packs) for packs in shared] == [room] * ranks
    assert sorted(index for packs in shared for index in packs) == list(range(len(costs)))
    assert all(packs == sorted(packs) for packs in shared)
    assert shared == assign_packs(costs, ranks)
    heaviest = max(sum(costs[index] for index in packs) for packs in shared)
    groups_of_largest = sum(sorted(costs, reverse=True)[i * ranks] for i in range(room))  # one of each layer
    assert heaviest <= groups_of_largest * (1 + 1e-9) + 1e-9


def test_longest_first() -> None:
    assert assign_packs([5, 4, 3, 2], 2) == [[0, 3], [1, 2]]
    assert assign_packs([1, 1, 1, 1], 4) == [[0], [1], [2], [3]]


def test_swaps_make_even_what_longest_first_does_not() -> None:
    """Longest first gives 17 + 9 + 1 against 15 + 9 + 2."""
    costs = [17.0, 15.0, 9.0, 9.0, 2.0, 1.0]
    assert sorted(sum(costs[pack] for pack in packs) for packs in assign_packs(costs, 2)) == [26, 27]
    costs = [8.0, 7.0, 6.0, 5.0, 4.0, 0.0]  # longest first: 8 + 5 + 4 against 7 + 6 + 0
    assert [sum(costs[pack] for pack in packs) for packs in assign_packs(costs, 2)] == [15, 15]


def test_unequal_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="3 packs"):
        assign_packs([1.0, 2.0, 3.0], 2)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.sampled_from([(4, 1), (4, 2), (4, 4), (6, 3), (1, 1)]),
    room=st.integers(1, 4),
    costs=st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(0.0, 1e6)), min_size=24, max_size=24),
)
def test_packs_of_ranks_that_share_images(sizes: tuple[int, int], room: int, costs: list[tuple[float, float]]) -> None:
    """Alone each rank bears both costs; where all share, the ViT's decides nothing."""
    ranks, vision_dp = sizes
    language, vision = (list(column) for column in zip(*costs[: ranks * room], strict=True))
    shared = share_packs(language, vision, ranks, vision_dp)
    assert [len(packs) for packs in shared] == [room] * ranks
    assert sorted(pack for packs in shared for pack in packs) == list(range(ranks * room))
    assert all(packs == sorted(packs) for packs in shared)
    if vision_dp == 1:
        assert shared == assign_packs([a + b for a, b in zip(language, vision, strict=True)], ranks)
    if vision_dp == ranks:
        assert shared == assign_packs(language, ranks)


def test_neighbours_get_the_images_that_they_share() -> None:
    """Two packs of heavy pictures: one for each neighbourhood; inside one, or all together, the long text decides."""
    assert share_packs([1, 1, 8, 1], [90, 90, 0, 0], 4, 2) == [[2], [0], [1], [3]]
    assert share_packs([1, 1, 8, 1], [90, 90, 0, 0], 2, 2) == [[2, 3], [0, 1]]
