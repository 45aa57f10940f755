import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3vl.data.shuffle import WINDOW, Order, Shuffle


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    order = Shuffle.of(seed, "s1", "text", n).index(epoch * n + np.arange(n))
    assert np.array_equal(np.sort(order), np.arange(n))


def test_seed_stage_source_and_epoch_all_change_the_order() -> None:
    n = 1000
    first = Shuffle.of(1, "s0", "a", n).index(np.arange(2 * n))
    others = [Shuffle.of(*facts, n).index(np.arange(n)) for facts in ((2, "s0", "a"), (1, "s1", "a"), (1, "s0", "b"))]
    for other in (*others, first[n:], np.arange(n)):
        assert np.mean(first[:n] == other) < 0.01


def test_random_access_equals_going_through() -> None:
    shuffle = Shuffle.of(3, "s0", "a", 777)
    turns = np.random.default_rng(0).integers(0, 10**12, 500)
    assert shuffle.index(turns).tolist() == [int(shuffle.index(np.array([turn]))[0]) for turn in turns]


def test_the_order_is_spread_evenly() -> None:
    """Where sample 0 falls over many epochs is uniform: chi-square with 19 degrees of freedom, 1e-4 quantile 52."""
    n, epochs = 20, 20000
    order = Shuffle.of(0, "s0", "a", n).index(np.arange(n * epochs)).reshape(epochs, n)
    for sample in (0, 7, 19):
        counts = np.bincount(np.argmax(order == sample, axis=1), minlength=n)
        assert ((counts - epochs / n) ** 2 / (epochs / n)).sum() < 52
    # neighbours do not stay neighbours
    steps = np.bincount(np.diff(order, axis=1).ravel() + n, minlength=2 * n)
    assert steps[n + 1] < 1.2 * epochs * (n - 1) ** 2 / (n * (n - 1))


def test_the_order_never_changes_between_versions_of_the_code() -> None:
    small, large = Shuffle.of(1234, "s2", "video", 10), Shuffle.of(0, "s0", "a", 10**11)
    assert small.index(np.arange(20)).tolist() == [1, 6, 5, 7, 8, 9, 0, 3, 2, 4, 9, 0, 8, 2, 3, 5, 7, 4, 1, 6]
    assert large.index(np.array([0, 10**15])).tolist() == [98844041737, 96394569483]


orders = st.builds(
    Order.of,
    st.integers(0, 99),
    st.just("s1"),
    st.just("text"),
    num_samples=st.integers(1, 400),
    slice_size=st.integers(1, 20),
    num_lanes=st.integers(1, 9),
)


@given(orders, st.integers(0, 10**6))
def test_in_slices_too_every_epoch_has_every_sample_once_over_all_lanes(order: Order, epoch: int) -> None:
    slices, lanes = order.slices.num_samples, order.num_lanes
    found = []
    for lane in range(lanes):
        # the epoch's slices of the endless sequence that are this lane's
        mine = [place // lanes for place in range(epoch * slices, (epoch + 1) * slices) if place % lanes == lane]
        first, end = (mine[0], mine[-1] + 1) if mine else (0, 0)
        turns = np.arange(first * order.slice_size, end * order.slice_size)
        assert {order.epoch(lane, int(turn)) for turn in turns} <= {epoch}
        rows = order.index(lane, turns)
        shuffled = np.random.default_rng(epoch).permutation(len(turns))
        assert np.array_equal(order.index(lane, turns[shuffled]), rows[shuffled]), "any turn at once"
        found.append(rows)
    rows = np.sort(np.concatenate(found))
    assert len(rows) == order.turns_per_epoch
    assert np.array_equal(rows[: order.num_samples], np.arange(order.num_samples))
    assert (rows[order.num_samples :] == order.num_samples).all(), "turns without a sample"


def test_slices_of_one_sample_are_the_plain_order() -> None:
    turns = np.arange(500)
    for lane in range(3):
        plain = Shuffle.of(7, "s1", "text", 100).index(lane + 3 * turns)
        assert np.array_equal(Order.of(7, "s1", "text", 100, 1, 3).index(lane, turns), plain)


def test_a_lane_is_in_few_slices_at_a_time_and_shuffles_them_together() -> None:
    size, lanes = 16, 4
    order = Order.of(3, "s1", "text", 64_000, size, lanes)
    window = WINDOW * size
    rows = order.index(1, np.arange(20 * window)).reshape(20, window)
    for part in rows:
        slices, counts = np.unique(part // size, return_counts=True)
        assert len(slices) == WINDOW and (counts == size).all()
        assert np.mean(np.diff(part) == 1) < 0.1 and len(set((part // size)[:size].tolist())) > 1
    order_inside = [tuple(np.argsort(part)) for part in rows]
    assert len(set(order_inside)) == 20, "no two windows are shuffled alike"
    assert len({tuple(order.index(lane, np.arange(window)) % size) for lane in range(lanes)}) == lanes


def test_the_order_of_slices_never_changes_between_versions_of_the_code() -> None:
    order = Order.of(1234, "s2", "video", 30, 4, 2)
    first = [3, 0, 16, 7, 19, 5, 26, 2, 1, 4, 27, 25, 17, 24, 18, 6, 21, 26, 7, 9]
    assert order.index(0, np.arange(20)).tolist() == first
