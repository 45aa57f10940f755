"""The whole statement about a stage's data, over random mixtures: nothing lost, nothing doubled, no sample cut, waiting
bounded, shares kept, and stops and restarts on any number of ranks change nothing.

MQ3_EXAMPLES sets how many mixtures are tried (`make properties`); by default they are the same ones every time.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from megatron_qwen3vl.data.lanes import LaneState, Planned
from megatron_qwen3vl.data.loader import Loader, LoaderConfig, Step
from tests.unit.data.fake_source import FakeSource
from tests.unit.data.test_loader import CONFIG, content

EXAMPLES = os.environ.get("MQ3_EXAMPLES")
STEPS = 10
FIXED = settings(
    max_examples=int(EXAMPLES or 60),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class World:
    """``restarts``: (ranks, steps) one after another; together STEPS."""

    config: LoaderConfig
    sources: list[FakeSource]
    weights: list[float]
    restarts: list[tuple[int, int]]

    @property
    def length(self) -> int:
        return self.config.sequence_length

    @property
    def lanes(self) -> int:
        return self.config.global_batch_size

    def usable(self, source: int) -> set[int]:
        return {row for row, n in enumerate(self.sources[source].lengths.tolist()) if 0 < n <= self.length}

    def loader(self, state: Any, num_ranks: int, rank: int) -> Loader:
        return Loader(replace(self.config, num_ranks=num_ranks, rank=rank), self.sources, self.weights, state)


def at_least(shortest: int) -> Callable[[int], int]:
    """Of lengths that can be used: many tiny samples only cost time."""
    return lambda length: max(length, shortest) if length > 0 else length


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Short packs, which the closing of a pack makes alone, and long ones, which are filled in order first; sources of
    few samples, many times over, and of many; samples that cannot be used or fit no pack."""
    length = draw(st.sampled_from([24, 24, 64, 11_000]))
    shortest = -(-length // 50)
    usual, any_at_all = st.integers(shortest, length // 4), st.integers(-1, 2 * length).map(at_least(shortest))
    any_length = st.one_of(usual, st.integers(shortest, length), any_at_all)
    sources = []
    for number in range(draw(st.integers(1, 4))):
        lengths = [*draw(st.lists(any_length, max_size=40)), draw(st.integers(shortest, length))]
        slice_size = draw(st.sampled_from([1, 1, 2, 3, 7, 16]))
        sources.append(FakeSource(f"s{number}", np.array(lengths, np.int32), slice_size=slice_size))
    weights = [draw(st.sampled_from([0.05, 0.1, 0.3, 1, 2.5])) for _ in sources]
    lanes = draw(st.sampled_from([1, 2, 4, 6]))
    ranks = st.sampled_from([n for n in range(1, lanes + 1) if lanes % n == 0])
    restarts, left = [], STEPS
    while left:
        restarts.append((draw(ranks), draw(st.integers(1, left))))
        left -= restarts[-1][1]
    config = replace(
        CONFIG,
        seed=draw(st.integers(0, 99)),
        sequence_length=length,
        global_batch_size=lanes,
        lookahead=draw(st.integers(4, 6)),
        pixels=False,
    )
    return World(config, sources, weights, restarts)


def uninterrupted(world: World) -> list[Step]:
    with closing(world.loader(None, 1, 0)) as loader:
        return [loader.next() for _ in range(STEPS)]


def turns_of(loader: Loader, lane: int, source: int, count: int) -> list[int]:
    """The rows of a lane's first turns of a source, -1 where one cannot be used."""
    rows, lengths = loader._mixture.look_up(lane, source, range(count))
    return [row if length else -1 for row, length in zip(rows, lengths, strict=True)]


def turns_in_epochs(world: World, lane: int, source: int, epochs: int) -> int:
    """How many turns a lane has in a source's first epochs: of the slices, every lane gets each num_lanes-th."""
    size = world.sources[source].slice_size
    slices = epochs * -(-len(world.sources[source]) // size)
    return len(range(lane, slices, world.lanes)) * size


def packed(steps: Sequence[Step], lane: int) -> Iterator[tuple[Planned, ...]]:
    return (step.lanes[lane] for step in steps)


@FIXED
@given(worlds())
def test_nothing_is_lost_doubled_or_cut_and_waiting_and_shares_are_bounded(world: World) -> None:
    steps = uninterrupted(world)
    check_packs(world, steps)
    check_each_sample_once_an_epoch(world, steps)
    check_left_out(world, steps)
    for lane in range(world.lanes):
        check_waiting(world, [step.after[lane] for step in steps])
        check_shares(world, steps, lane)


def check_packs(world: World, steps: Sequence[Step]) -> None:
    for step in steps:
        assert [pack.lane for pack in step.packs] == list(range(world.lanes))
        for pack, samples in zip(step.packs, step.lanes, strict=True):
            lengths = [int(world.sources[sample.source].lengths[sample.row]) for sample in samples]
            assert samples and lengths == [sample.length for sample in samples]
            assert sum(lengths) <= world.length == len(pack.input_ids)
            spans = np.diff(pack.cu_seqlens).tolist()
            assert spans == lengths + [world.length - sum(lengths)] * (sum(lengths) < world.length), "a sample is cut"
            held = np.concatenate([np.full(sample.length, sample.row) for sample in samples])
            assert np.array_equal(pack.input_ids[: sum(lengths)], held)


def check_each_sample_once_an_epoch(world: World, steps: Sequence[Step]) -> None:
    """What was used and what waits are a lane's turns up to where it stands; all lanes' turns of an epoch are the
    source's usable samples, each once."""
    with closing(world.loader(None, 1, 0)) as loader:
        for source in range(len(world.sources)):
            drained = STEPS * world.lanes * world.length  # epochs, more than there can be
            by_lane = []
            for lane in range(world.lanes):
                after = steps[-1].after[lane]
                rows = turns_of(loader, lane, source, after.taken[source])
                waiting = [turn for number, turn in after.waiting if number == source]
                used = Counter(s.row for pack in packed(steps, lane) for s in pack if s.source == source)
                assert Counter(row for row in rows if row >= 0) == used + Counter(rows[turn] for turn in waiting)
                done = min([after.taken[source], *waiting])  # all turns before have been used
                while turns_in_epochs(world, lane, source, drained) > done:
                    drained = drained // 2 if drained > 64 else drained - 1
                by_lane.append(rows)
            seen = Counter(
                row
                for lane, rows in enumerate(by_lane)
                for row in rows[: turns_in_epochs(world, lane, source, drained)]
                if row >= 0
            )
            note(f"source {source}: {drained} epochs drained")
            assert seen == Counter(dict.fromkeys(world.usable(source), drained) if drained else {})


def check_waiting(world: World, states: Sequence[LaneState]) -> None:
    """A sample with p older ones waiting is used within p + 1 packs, and no more wait than the lookahead asks for."""
    first_seen: dict[tuple[int, int], tuple[int, int]] = {}
    for step, state in enumerate(states):
        assert len(set(state.waiting)) == len(state.waiting)
        for older, item in enumerate(state.waiting):
            seen, then_older = first_seen.setdefault(item, (step, older))
            assert step - seen <= then_older


def check_shares(world: World, steps: Sequence[Step], lane: int) -> None:
    """In tokens drawn, at every step, no source is further from its share than one longest sample, in each lane."""
    with closing(world.loader(None, 1, 0)) as loader:
        mixture = loader._mixture
    lengths: dict[tuple[int, int], int] = {}
    for source in range(len(world.sources)):
        turns = sorted({turn for step in steps for number, turn in step.after[lane].waiting if number == source})
        lengths.update(zip([(source, turn) for turn in turns], mixture.look_up(lane, source, turns)[1], strict=True))
    longest = max(int(world.sources[s].lengths[row]) for s in range(len(world.sources)) for row in world.usable(s))
    used = [0] * len(world.sources)
    for step, pack in zip(steps, packed(steps, lane), strict=True):
        for sample in pack:
            used[sample.source] += sample.length
        drawn, waiting_tokens = list(used), 0
        for item in step.after[lane].waiting:
            drawn[item[0]] += lengths[item]
            waiting_tokens += lengths[item]
        assert tuple(drawn) == step.after[lane].tokens
        lookahead = world.config.lookahead * world.length
        assert lookahead - world.length <= waiting_tokens < lookahead + longest
        for source, weight in enumerate(world.weights):
            assert abs(drawn[source] - weight / sum(world.weights) * sum(drawn)) <= longest * (1 + 1e-9)


def check_left_out(world: World, steps: Sequence[Step]) -> None:
    for number, source in enumerate(world.sources):
        named = [sample.key for step in steps for sample in step.left_out if sample.source == source.name]
        cannot = {source.key(row) for row in set(range(len(source))) - world.usable(number)}
        assert len(named) == len(set(named)) and set(named) <= cannot
        taken = [state.taken[number] for state in steps[-1].after]
        if all(count >= turns_in_epochs(world, lane, number, 1) for lane, count in enumerate(taken)):
            assert set(named) == cannot


@FIXED
@given(worlds())
def test_stops_and_restarts_on_any_number_of_ranks_change_nothing(world: World) -> None:
    expected = iter(uninterrupted(world))
    state: Any = None
    for num_ranks, count in world.restarts:
        with ExitStack() as stack:
            loaders = [stack.enter_context(closing(world.loader(state, num_ranks, rank))) for rank in range(num_ranks)]
            assert all(loader.changes == [] for loader in loaders)
            for whole in (next(expected) for _ in range(count)):
                steps = [loader.next() for loader in loaders]
                assert all(step.lanes == whole.lanes and step.left_out == whole.left_out for step in steps)
                assert len({step.digest for step in steps}) == 1
                assert all(step.after == whole.after and step.epochs == whole.epochs for step in steps)
                packs = sorted((pack for step in steps for pack in step.packs), key=lambda pack: pack.lane)
                assert [content(pack) for pack in packs] == [content(pack) for pack in whole.packs]
            states = {json.dumps(loader.state()) for loader in loaders}
            (text,) = states
            state = json.loads(text)
