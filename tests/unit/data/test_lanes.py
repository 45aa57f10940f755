import json
from dataclasses import replace

import numpy as np
import pytest

from megatron_qwen3vl.data.lanes import Lane, LaneState, LeftOut, Mixture, Planned, start_lanes, whole_shares
from megatron_qwen3vl.data.state import decode, encode
from megatron_qwen3vl.errors import UserError
from tests.unit.data.fake_source import FakeSource, fake_source

T = 64


def lanes_of(mixture: Mixture, lookahead: int, states: list[LaneState] | None = None) -> list[Lane]:
    given_states = states or [None] * mixture.num_lanes
    return [Lane(number, mixture, lookahead, state) for number, state in enumerate(given_states)]


def run(lanes: list[Lane], steps: int) -> tuple[list[list[list[Planned]]], list[LeftOut]]:
    results = [[lane.next_pack() for lane in lanes] for _ in range(steps)]
    return [[pack for pack, _ in step] for step in results], [x for step in results for _, out in step for x in out]


def test_small_sources_do_not_hold_a_large_one_up() -> None:
    """Drawing the source furthest behind would let the large one fall 1.4 samples behind here."""
    mixture = Mixture([fake_source(name, *[8] * 9) for name in "abcd"], [1, 1, 1, 40], 0, "s0", 1, T)
    (lane,) = lanes_of(mixture, T)
    for _ in range(40):
        run([lane], 1)
        tokens = lane.state().tokens
        assert abs(40 * sum(tokens) - 43 * tokens[3]) <= 43 * 8


def test_a_lane_depends_on_seed_stage_and_its_number_only() -> None:
    sources = [fake_source("a", *range(5, 60)), fake_source("b", *range(1, 40))]

    def packs(seed: int, stage: str, number: int) -> list[list[list[Planned]]]:
        return run([Lane(number, Mixture(sources, [1, 2], seed, stage, 3, T), 4 * T, None)], 5)[0]

    together, _ = run(lanes_of(Mixture(sources, [1, 2], 0, "s0", 3, T), 4 * T), 5)
    assert packs(0, "s0", 1) == [[step[1]] for step in together]
    assert len({str(packs(*facts)) for facts in ((0, "s0", 1), (1, "s0", 1), (0, "s1", 1), (0, "s0", 2))}) == 4


@pytest.mark.parametrize("slice_size", [1, 3])
def test_lanes_that_begin_together_are_those_that_begin_alone(slice_size: int) -> None:
    sizes = {"a": 60, "b": 8, "c": 31}
    sources = [replace(fake_source(name, *range(1, last)), slice_size=slice_size) for name, last in sizes.items()]
    mixture = Mixture(sources, [1, 2, 1], 0, "s0", 5, T)
    alone, together = lanes_of(mixture, 4 * T), start_lanes(mixture, 4 * T, [None] * 5)
    assert run(together, 7) == run(alone, 7)
    states = [lane.state() for lane in alone]
    assert len({len(state.waiting) for state in states}) > 1
    again = start_lanes(mixture, 4 * T, states)
    assert run(again, 60) == run(alone, 60)  # beyond what was looked up together, over several epochs
    assert [lane.state() for lane in again] == [lane.state() for lane in alone]


def test_epochs_are_shuffled_anew() -> None:
    mixture = Mixture([fake_source("a", *[T] * 30)], [1], 0, "s0", 1, T)
    steps, _ = run(lanes_of(mixture, T), 60)
    order = [pack[0].row for (pack,) in steps]
    assert sorted(order[:30]) == sorted(order[30:]) == list(range(30))
    assert order[:30] != order[30:]


def test_the_state_stays_small_and_does_not_grow() -> None:
    lengths = np.clip(np.exp(np.random.default_rng(0).normal(6.4, 1.3, 2000)).astype(np.int32), 16, 8192)
    sources = [FakeSource(f"source_{number}", lengths) for number in range(5)]
    mixture = Mixture(sources, [0.3, 0.3, 0.2, 0.1, 0.1], 0, "s1", 2, 8192)
    lanes = lanes_of(mixture, 4 * 8192)
    sizes = []
    for _ in range(30):
        run(lanes, 10)
        state = encode(mixture, [lane.state() for lane in lanes])
        sizes.append(max(len(json.dumps(lane)) for lane in state["lanes"]))
    assert max(sizes) < 350
    assert max(sizes[15:]) - max(sizes[:15]) < 40


def test_shares_are_exact() -> None:
    assert whole_shares([0.1, 0.2, 0.7]) == (1, 2, 7)
    assert whole_shares([3, 1.5]) == (2, 1)
    mixture = Mixture([fake_source(n, *[7] * 5) for n in "abc"], [0.5, 0.4, 0.1], 0, "s0", 1, T)
    (lane,) = lanes_of(mixture, T)
    run([lane], 500)
    tokens = np.array(lane.state().tokens)
    assert np.abs(tokens / tokens.sum() - [0.5, 0.4, 0.1]).max() < 7 / tokens.sum()


def test_a_source_that_cannot_give_anything_is_named() -> None:
    sources = [fake_source("fine", 5), fake_source("long", 65, 70), fake_source("broken", 0, -1), fake_source("empty")]
    with pytest.raises(UserError) as caught:
        Mixture(sources, [1, 1, 1, 1], 0, "s0", 1, T)
    long, broken, empty = caught.value.problems
    assert "source long" in long and "64" in long and "65" in long
    assert "source broken" in broken and "index says it is broken" in broken
    assert "source empty" in empty


def test_left_out_samples_are_named_with_their_reason() -> None:
    mixture = Mixture([fake_source("a", 5, T + 1, 0, T)], [1], 0, "s0", 1, T)
    _, left_out = run(lanes_of(mixture, T), 20)
    assert sorted(left_out, key=lambda x: x.key) == [
        LeftOut("a", "a/shard/1", f"{T + 1} tokens, more than the sequence_length of {T}"),
        LeftOut("a", "a/shard/2", "index says it is broken"),
    ]


def changed(before: Mixture, after: Mixture) -> tuple[list[LaneState], list[LaneState], list[str]]:
    lanes = lanes_of(before, 4 * T)
    run(lanes, 7)
    states = [lane.state() for lane in lanes]
    restored, changes = decode(json.loads(json.dumps(encode(before, states))), after)
    run(lanes_of(after, 4 * T, restored), 10)
    return states, restored, changes


def mixture_of(*sources: FakeSource, weights: list[float], num_lanes: int = 2, seed: int = 0) -> Mixture:
    return Mixture(sources, weights, seed, "s0", num_lanes, T)


A, B, C = (fake_source(name, *range(3, 50)) for name in "abc")


def test_sources_added_removed_and_reweighted_at_a_restart() -> None:
    old, new, changes = changed(mixture_of(A, B, weights=[1, 1]), mixture_of(C, B, weights=[1, 3]))
    for before, after in zip(old, new, strict=True):
        assert after.taken == (0, before.taken[1])
        assert after.tokens == (0, 0), "shares are counted anew, or the new source would be read alone"
        assert after.waiting == tuple((1, turn) for source, turn in before.waiting if source == 1)
    assert changes == [
        "source c is new and begins at its first sample",
        "source a is gone, with its waiting samples",
        "source b has weight 3.0, had 1.0",
        "token shares are counted anew from here on",
    ]


def test_order_of_the_file_and_scale_of_the_weights_change_nothing_else() -> None:
    old, new, changes = changed(mixture_of(A, B, weights=[1, 2]), mixture_of(B, A, weights=[4, 2]))
    assert changes == []
    assert [lane.tokens for lane in new] == [lane.tokens[::-1] for lane in old]
    assert [len(lane.waiting) for lane in new] == [len(lane.waiting) for lane in old]


def test_a_source_with_other_samples_begins_afresh() -> None:
    more = fake_source("a", *range(3, 51))
    old, new, changes = changed(mixture_of(A, B, weights=[1, 2]), mixture_of(more, B, weights=[1, 2]))
    assert [lane.taken for lane in new] == [(0, lane.taken[1]) for lane in old]
    assert changes == ["source a has 48 samples, had 47: it begins afresh"]


def test_a_waiting_sample_that_no_longer_fits_is_dropped() -> None:
    longer = fake_source("a", *(n + 20 for n in range(3, 50)))
    _, _, changes = changed(mixture_of(A, weights=[1]), mixture_of(longer, weights=[1]))
    assert len(changes) == 1 and "source a has 2162 tokens" in changes[0]


def test_another_seed_or_number_of_lanes_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        changed(mixture_of(A, weights=[1]), mixture_of(A, weights=[1], num_lanes=4, seed=1))
    assert [line.split(":")[0] for line in caught.value.problems] == ["seed", "global_batch_size"]


def test_another_slice_is_refused_and_a_state_from_before_slices_goes_on() -> None:
    plain, sliced = mixture_of(A, B, weights=[1, 1]), mixture_of(replace(A, slice_size=8), B, weights=[1, 1])
    with pytest.raises(UserError) as caught:
        changed(plain, sliced)
    (line,) = caught.value.problems
    assert line.startswith("source a: slice: 8 cannot go on from data state with 1") and "write slice: 1" in line
    with pytest.raises(UserError, match="slice: 1 cannot go on"):
        changed(sliced, plain)
    lanes = lanes_of(plain, 4 * T)
    run(lanes, 3)
    state = encode(plain, [lane.state() for lane in lanes])
    for source in state["sources"]:
        del source["slice"]
    assert decode(state, plain) == ([lane.state() for lane in lanes], [])


@pytest.mark.parametrize("slice_size", [1, 4])
def test_epochs_count_what_was_drawn(slice_size: int) -> None:
    sources = [replace(fake_source("few", *[T // 4] * 8), slice_size=slice_size), fake_source("many", *[T // 4] * 64)]
    mixture = Mixture(sources, [1, 1], 0, "s0", 2, T)
    lanes = lanes_of(mixture, 4 * T)
    steps, _ = run(lanes, 10)
    states = [lane.state() for lane in lanes]
    for number, source in enumerate(sources):
        used = sum(sample.source == number for step in steps for pack in step for sample in pack)
        waiting = sum(item[0] == number for state in states for item in state.waiting)
        assert mixture.epochs(states)[source.name] == (used + waiting) / len(source)
    assert mixture.epochs(states)["few"] > 5 > 1 > mixture.epochs(states)["many"]


def test_every_waiting_sample_is_in_the_state() -> None:
    mixture = mixture_of(A, B, C, weights=[1, 2, 3])
    lanes = lanes_of(mixture, 8 * T)
    run(lanes, 9)
    states = [lane.state() for lane in lanes]
    assert all(len(state.waiting) > 10 for state in states)
    assert decode(json.loads(json.dumps(encode(mixture, states))), mixture) == (states, [])
