"""Lanes: which samples are in which pack, from lengths alone.

A stage has V = global_batch_size lanes; lane l gives one pack to every global batch. Its stream is a pure function of
(seed, stage, lane) and the sources, so every rank can plan every lane, and neither ranks nor workers matter.

    source  : an endless sequence of slices, in every epoch each slice once in an order of its own (shuffle.Order)
    lane l  : takes the slices l, l + V, l + 2V, ... of every source; `taken` counts its turns, one sample each
    mixing  : the next sample comes from the source that must be drawn soonest to keep its share of this lane's tokens
    packing : samples wait until `lookahead` tokens do, then packing.py chooses one pack

A lane's state is one count and one token total per source and the waiting samples: small, and as large after a day as
after a minute. Whole numbers throughout: shares are made integers, so that no rounding decides what comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from typing import NamedTuple, Protocol

import numpy as np

from megatron_qwen3vl.batch import Sample
from megatron_qwen3vl.data.packing import choose_pack
from megatron_qwen3vl.data.shuffle import Order
from megatron_qwen3vl.data.survey import Survey
from megatron_qwen3vl.errors import UserError

_FIRST = 32  # turns looked up when a lane begins, for its first pack
_BLOCK = 256  # turns looked up at once, fewer when lanes x sources are many
_LOOKED_UP = 1 << 20  # turns held by all lanes together


class SampleSource(Protocol):
    """What planning and reading need of a source (data/source.py)."""

    @property
    def name(self) -> str: ...

    @property
    def slice_size(self) -> int: ...  # neighbouring samples that one lane gets together

    @property
    def lengths(self) -> np.ndarray: ...  # int32 [n] tokens; <= 0 cannot be used

    @property
    def patches(self) -> np.ndarray: ...  # int32 [n]

    @property
    def damage(self) -> Sequence[str]: ...  # a line for each part of a shard that cannot be read

    def __len__(self) -> int: ...

    def survey(self, sequence_length: int, /) -> Survey: ...

    def key(self, row: int, /) -> str: ...

    def domain(self, row: int, /) -> str: ...

    def reason(self, row: int, /) -> str: ...

    def read(self, row: int, pixels: bool, /) -> Sample: ...


class Planned(NamedTuple):
    """A sample that has its place in a pack: number ``row`` of source number ``source``, ``length`` in tokens."""

    source: int
    row: int
    length: int


@dataclass(frozen=True)
class LeftOut:
    """A sample that no pack can hold."""

    source: str
    key: str
    reason: str


@dataclass(frozen=True)
class LaneState:
    """``waiting`` in order of arrival: (source, turn of this lane); ``Order.index`` says which sample a turn is."""

    taken: tuple[int, ...]  # turns taken, per source, those without a usable sample included
    tokens: tuple[int, ...]  # tokens drawn, per source, since the weights last changed
    waiting: tuple[tuple[int, int], ...]


class Mixture:
    """What all lanes share: sources, shares and the order of each source.

    Raises UserError for a source in which no sample can be used.
    """

    def __init__(
        self,
        sources: Sequence[SampleSource],
        weights: Sequence[float],
        seed: int,
        stage: str,
        num_lanes: int,
        sequence_length: int,
    ) -> None:
        self.sources = list(sources)
        self.weights = [float(weight) for weight in weights]
        self.shares = whole_shares(weights)
        self.all_shares = sum(self.shares)
        self.seed, self.stage = seed, stage
        self.num_lanes = num_lanes
        self.sequence_length = sequence_length
        self.block = max(16, min(_BLOCK, _LOOKED_UP // (num_lanes * len(self.sources))))
        self._orders = [
            Order.of(seed, stage, source.name, len(source), source.slice_size, num_lanes) for source in sources
        ]
        surveys = [source.survey(sequence_length) for source in sources]
        self.num_left_out = [survey.left_out for survey in surveys]
        self.num_tokens = [survey.tokens for survey in surveys]
        problems = [
            self._nothing_usable(source)
            for source, left_out in zip(sources, self.num_left_out, strict=True)
            if left_out == len(source)
        ]
        if problems:
            raise UserError(problems)
        longest = max(survey.longest for survey in surveys)
        # in units of (all shares) tokens, and up to one factor common to all sources: only compared with one another
        self.latest = longest * self.all_shares
        self.inverse_shares = [lcm(*self.shares) // share for share in self.shares]

    def look_up(self, lane: int | np.ndarray, source: int, turns: Sequence[int]) -> _Found:
        """Indices and lengths of turns of a lane, or each of another lane; length 0 where unusable.

        The index is ``len(source)`` where a turn has no sample at all.
        """
        index = self._orders[source].index(lane, np.array(turns, np.int64))
        num_samples = len(self.sources[source])
        lengths = np.asarray(self.sources[source].lengths[np.minimum(index, num_samples - 1)])
        return index.tolist(), np.where(self._unusable(lengths) | (index == num_samples), 0, lengths).tolist()

    def is_new(self, lane: int, source: int, turn: int, index: int) -> bool:
        """Whether this turn is the first one of a sample."""
        return index < len(self.sources[source]) and self._orders[source].epoch(lane, turn) == 0

    def epochs(self, lanes: Sequence[LaneState]) -> dict[str, float]:
        """Per source, how often its samples have been drawn, those that still wait included."""
        return {
            source.name: sum(lane.taken[number] for lane in lanes) / self._orders[number].turns_per_epoch
            for number, source in enumerate(self.sources)
        }

    def left_out(self, source: int, index: int) -> LeftOut:
        found = self.sources[source]
        length = int(found.lengths[index])
        too_long = f"{length} tokens, more than the sequence_length of {self.sequence_length}"
        reason = found.reason(index)
        return LeftOut(found.name, found.key(index), "; ".join(filter(None, (too_long * (length > 0), reason))))

    def _unusable(self, lengths: np.ndarray) -> np.ndarray:
        return (lengths <= 0) | (lengths > self.sequence_length)

    def _nothing_usable(self, source: SampleSource) -> str:
        if not len(source):
            lost = f" ({source.damage[0]})" if source.damage else ""
            return f"source {source.name}: no samples{lost}; mend its shards or take it out of the mixture"
        shortest = int(source.lengths.min())
        if shortest > 0:
            return (
                f"source {source.name}: none of its {len(source)} samples fits a sequence_length of "
                f"{self.sequence_length}, the shortest has {shortest} tokens; raise sequence_length, lower its "
                f"max_pixels, set its too_long to split or take it out of the mixture"
            )
        example = int(source.lengths.argmin())
        return (
            f"source {source.name}: none of its {len(source)} samples can be used "
            f"({source.key(example)}: {source.reason(example)}); mend its shards or take it out of the mixture"
        )


def whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest integers in exactly the proportion of the weights as they are written (0.1 is one tenth)."""
    fractions = [Fraction(repr(float(weight))) for weight in weights]
    denominator = lcm(*(fraction.denominator for fraction in fractions))
    shares = [int(fraction * denominator) for fraction in fractions]
    return tuple(share // gcd(*shares) for share in shares)


_Found = tuple[list[int], list[int]]  # indices and lengths, as ``Mixture.look_up`` gives them


class Lane:
    """One lane's stream of packs."""

    def __init__(
        self,
        number: int,
        mixture: Mixture,
        lookahead: int,
        state: LaneState | None,
        looked_up: Sequence[_Found] | None = None,
    ) -> None:
        """``lookahead`` in tokens, at least one sequence length. ``looked_up``, per source: what ``start_lanes`` has
        asked the mixture already."""
        start = state or _beginning(mixture)
        if looked_up is None:
            turns = _first_turns(start, mixture)
            looked_up = [mixture.look_up(number, source, of_source) for source, of_source in enumerate(turns)]
        self._number = number
        self._mixture = mixture
        self._lookahead = max(lookahead, mixture.sequence_length)
        self._taken, self._tokens = list(start.taken), list(start.tokens)
        # turns looked up ahead, per source: first turn, indices, lengths
        self._blocks: list[tuple[int, list[int], list[int]]] = []
        self._waiting: list[tuple[int, int]] = []  # source, turn
        self._waiting_samples: list[Planned] = []
        for taken, (indices, lengths) in zip(start.taken, looked_up, strict=True):
            waiting = len(indices) - _FIRST
            self._blocks.append((taken, indices[waiting:], lengths[waiting:]))
        found = [zip(*each, strict=True) for each in looked_up]
        for source, turn in start.waiting:
            index, length = next(found[source])
            if length:  # lengths may have changed between two starts
                self._wait(source, turn, index, length)

    def state(self) -> LaneState:
        return LaneState(tuple(self._taken), tuple(self._tokens), tuple(self._waiting))

    def next_pack(self) -> tuple[list[Planned], list[LeftOut]]:
        """The samples of the lane's next pack in their order, and those newly found to fit none."""
        left_out: list[LeftOut] = []
        waiting_tokens = sum(sample.length for sample in self._waiting_samples)
        while waiting_tokens < self._lookahead:
            waiting_tokens += self._draw(self._next_source(), left_out)
        samples = self._waiting_samples
        taken = choose_pack([sample.length for sample in samples], self._mixture.sequence_length)
        gone = set(taken)
        self._waiting = [turn for place, turn in enumerate(self._waiting) if place not in gone]
        self._waiting_samples = [sample for place, sample in enumerate(samples) if place not in gone]
        return [samples[place] for place in taken], left_out

    def _wait(self, source: int, turn: int, index: int, length: int) -> None:
        self._waiting.append((source, turn))
        self._waiting_samples.append(Planned(source, index, length))

    def _next_source(self) -> int:
        """Of the sources that are not ahead of their share, the one that would soonest be a longest sample behind.

        behind = share x all tokens - its tokens, and a source falls behind in proportion to its share while others are
        drawn (the deadline rule of Tijdeman, "The chairman assignment problem", 1980). Taking simply the one furthest
        behind lets a small source fall up to 1.5 longest samples behind. All in whole numbers, the first of equals.
        """
        mixture, all_tokens = self._mixture, sum(self._tokens)
        chosen, soonest = -1, 0
        for source, tokens in enumerate(self._tokens):
            behind = mixture.shares[source] * all_tokens - mixture.all_shares * tokens
            if behind >= 0:
                deadline = (mixture.latest - behind) * mixture.inverse_shares[source]
                if chosen < 0 or deadline < soonest:
                    chosen, soonest = source, deadline
        return chosen

    def _draw(self, source: int, left_out: list[LeftOut]) -> int:
        """Make the source's next usable sample wait; its length. An unusable one is named in its first epoch only."""
        mixture = self._mixture
        while True:
            turn = self._taken[source]
            first, indices, lengths = self._blocks[source]
            if not first <= turn < first + len(indices):
                first = turn
                indices, lengths = mixture.look_up(self._number, source, range(turn, turn + mixture.block))
                self._blocks[source] = (first, indices, lengths)
            index, length = indices[turn - first], lengths[turn - first]
            self._taken[source] += 1
            if length:
                self._tokens[source] += length
                self._wait(source, turn, index, length)
                return length
            if mixture.is_new(self._number, source, turn, index):
                left_out.append(mixture.left_out(source, index))


def start_lanes(mixture: Mixture, lookahead: int, starts: Sequence[LaneState | None]) -> list[Lane]:
    """All lanes, as ``Lane`` makes each; what they look up first is looked up together, in less than half the time."""
    turns = [_first_turns(state or _beginning(mixture), mixture) for state in starts]
    looked_up: list[list[_Found]] = [[] for _ in starts]
    for source in range(len(mixture.sources)):
        ends = np.cumsum([0, *(len(of_lane[source]) for of_lane in turns)])
        lanes = np.repeat(np.arange(len(starts)), np.diff(ends))
        indices, lengths = mixture.look_up(lanes, source, [turn for of_lane in turns for turn in of_lane[source]])
        for found, first, end in zip(looked_up, ends[:-1], ends[1:], strict=True):
            found.append((indices[first:end], lengths[first:end]))
    return [
        Lane(number, mixture, lookahead, state, found)
        for number, (state, found) in enumerate(zip(starts, looked_up, strict=True))
    ]


def _beginning(mixture: Mixture) -> LaneState:
    nothing = (0,) * len(mixture.sources)
    return LaneState(nothing, nothing, ())


def _first_turns(start: LaneState, mixture: Mixture) -> list[list[int]]:
    """Per source the turns of a lane's waiting samples, then its next ``_FIRST`` turns."""
    turns: list[list[int]] = [[] for _ in mixture.sources]
    for source, turn in start.waiting:
        turns[source].append(turn)
    return [[*waiting, *range(taken, taken + _FIRST)] for waiting, taken in zip(turns, start.taken, strict=True)]
