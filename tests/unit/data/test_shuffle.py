import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3vl.data.shuffle import Shuffle


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
