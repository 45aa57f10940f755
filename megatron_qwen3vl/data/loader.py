"""The loader of one rank: plans every lane, reads the packs that fall to this rank.

    lanes.Lane x V  --lengths-->  plan of a step: one pack per lane
    balance.share_packs  --cost-->  which of them this rank reads
    Source.read, here or in workers  -->  to_pack  -->  Step

The plan of a step, so the contents of a global batch, depends on neither ranks nor workers nor prefetching.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megatron_qwen3vl.batch import IGNORE, Document, Pack, Sample
from megatron_qwen3vl.data import state as lane_state
from megatron_qwen3vl.data.lanes import LaneState, LeftOut, Mixture, Planned, SampleSource, start_lanes
from megatron_qwen3vl.data.workers import ReaderPool, Task, WorkerLimits, read_planned
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.parallel.balance import share_packs


@dataclass(frozen=True)
class PackCost:
    """Work of a pack in any one unit: sum over its samples of token x n + pair x n^2 in the language model, of
    patch x patches in the ViT.

    n^2 is the causal attention of a document of n tokens; attention never crosses documents. It only decides which rank
    gets a pack, never what is in it.
    """

    token: float
    pair: float
    patch: float

    def language(self, samples: Sequence[Planned]) -> float:
        lengths = np.array([sample.length for sample in samples], np.float64)
        return float(self.token * lengths.sum() + self.pair * (lengths**2).sum())

    def vision(self, samples: Sequence[Planned], sources: Sequence[SampleSource]) -> float:
        return self.patch * sum(int(sources[sample.source].patches[sample.row]) for sample in samples)


@dataclass(frozen=True)
class LoaderConfig:
    seed: int
    stage: str
    sequence_length: int
    global_batch_size: int  # lanes
    lookahead: int  # waiting tokens of a lane, in sequence lengths
    pad_id: int
    num_ranks: int  # data-parallel ranks, and which of them this is
    rank: int
    vision_dp: int  # how many neighbouring ones share their images
    workers: int  # processes; 0 reads in this one
    prefetch: int  # steps read ahead, with workers
    limits: WorkerLimits
    pixels: bool  # whether this rank needs patches
    cost: PackCost


@dataclass(frozen=True)
class Step:
    """What `next` hands out: this rank's packs by ascending lane; all else is of the whole global batch.

    ``lanes``, ``sources`` and ``after`` stay where the loader is: other ranks get a step without them (``to_send``).
    """

    packs: tuple[Pack, ...]
    lanes: tuple[tuple[Planned, ...], ...]
    sources: tuple[SampleSource, ...]
    after: tuple[LaneState, ...]  # what `Loader.state_after` makes a checkpoint's state of
    left_out: tuple[LeftOut, ...]
    source_tokens: Mapping[str, int]  # by source, without padding
    epochs: Mapping[str, float]  # by source, see Mixture.epochs
    digest: int  # of the plan and of who reads which part of it: equal on all loaders, or they read different data

    @property
    def keys_by_lane(self) -> tuple[tuple[str, ...], ...]:
        """Looked up when asked for: only who writes them down needs the keys of the whole global batch."""
        return tuple(tuple(self.sources[sample.source].key(sample.row) for sample in lane) for lane in self.lanes)

    def keys(self) -> list[str]:
        """Of the whole global batch, by lane and then by place in its pack."""
        return [key for lane in self.keys_by_lane for key in lane]

    @property
    def num_samples(self) -> int:
        """Samples read for the global batch, failed ones included."""
        return sum(map(len, self.lanes))

    def to_send(self) -> Step:
        return replace(self, packs=(), lanes=(), sources=(), after=())


@dataclass(frozen=True)
class _Plan:
    lanes: tuple[tuple[Planned, ...], ...]
    mine: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    after: tuple[LaneState, ...]
    digest: int
    first_task: int


class Loader:
    """An endless sequence of steps. ``changes`` says in sentences what differs from the mixture of ``state``.

    Raises UserError where a source has no usable sample, global_batch_size cannot be shared out equally, or ``state``
    belongs to another seed, stage, sequence_length or global_batch_size.
    """

    def __init__(
        self,
        config: LoaderConfig,
        sources: Sequence[SampleSource],
        weights: Sequence[float],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if config.global_batch_size % config.num_ranks:
            raise UserError(
                f"global_batch_size: {config.global_batch_size} packs cannot be shared out equally over "
                f"{config.num_ranks} data-parallel ranks; choose a multiple"
            )
        self._config = config
        self._mixture = Mixture(
            sources, weights, config.seed, config.stage, config.global_batch_size, config.sequence_length
        )
        self.changes: list[str] = []
        starts: Sequence[LaneState | None] = [None] * config.global_batch_size
        if state is not None:
            starts, self.changes = lane_state.decode(state, self._mixture)
        lookahead = config.lookahead * config.sequence_length
        self._lanes = start_lanes(self._mixture, lookahead, starts)
        self._used = tuple(lane.state() for lane in self._lanes)
        self._planned: deque[_Plan] = deque()
        self._num_tasks = 0
        self._pool = ReaderPool(sources, config.workers, config.pad_id, config.limits) if config.workers else None

    @property
    def num_left_out(self) -> dict[str, int]:
        """Per source, how many of its samples no pack can hold."""
        return {source.name: n for source, n in zip(self._mixture.sources, self._mixture.num_left_out, strict=True)}

    @property
    def shares(self) -> dict[str, float]:
        """Per source, the share of tokens that the mixture asks for."""
        mixture = self._mixture
        named = zip(mixture.sources, mixture.shares, strict=True)
        return {source.name: share / mixture.all_shares for source, share in named}

    def next(self) -> Step:
        """The next step. Raises ReadError where reading a sample ended in an exception or workers cannot be kept."""
        while len(self._planned) < 1 + (self._config.prefetch if self._pool else 0):
            self._planned.append(self._plan())
        plan = self._planned[0]
        samples = iter(self._read(plan))
        packs = tuple(
            to_pack(lane, [next(samples) for _ in plan.lanes[lane]], self._config.sequence_length, self._config.pad_id)
            for lane in plan.mine
        )
        self._planned.popleft()
        self._used = plan.after
        return Step(
            packs=packs,
            lanes=plan.lanes,
            sources=tuple(self._mixture.sources),
            after=plan.after,
            left_out=plan.left_out,
            source_tokens=self._source_tokens(plan),
            epochs=self._mixture.epochs(plan.after),
            digest=plan.digest,
        )

    def state(self) -> dict[str, Any]:
        """All lanes after the last step that `next` returned, JSON-able; what is prefetched does not count."""
        return lane_state.encode(self._mixture, self._used)

    def state_after(self, step: Step) -> dict[str, Any]:
        """All lanes as they were when `next` returned this step."""
        return lane_state.encode(self._mixture, step.after)

    def close(self) -> None:
        """Ends the worker processes. Idempotent."""
        if self._pool:
            self._pool.close()

    def _plan(self) -> _Plan:
        planned = [lane.next_pack() for lane in self._lanes]
        lanes = tuple(tuple(samples) for samples, _ in planned)
        config = self._config
        language = [config.cost.language(samples) for samples in lanes]
        vision = [config.cost.vision(samples, self._mixture.sources) for samples in lanes]
        shares = share_packs(language, vision, config.num_ranks, config.vision_dp)
        mine = tuple(shares[config.rank])
        left_out = tuple(sample for _, named in planned for sample in named)
        # hashes of whole numbers are the same in every process of one Python
        digest = hash((lanes, tuple(map(tuple, shares)))) & 2**63 - 1
        plan = _Plan(lanes, mine, left_out, tuple(lane.state() for lane in self._lanes), digest, self._num_tasks)
        for lane in mine:
            for sample in lanes[lane]:
                if self._pool:
                    self._pool.submit(Task(self._num_tasks, *sample, self._config.pixels))
                self._num_tasks += 1
        return plan

    def _source_tokens(self, plan: _Plan) -> dict[str, int]:
        sources = self._mixture.sources
        tokens = {source.name: 0 for source in sources}
        for lane in plan.lanes:
            for sample in lane:
                tokens[sources[sample.source].name] += sample.length
        return tokens

    def _read(self, plan: _Plan) -> list[Sample]:
        wanted = [sample for lane in plan.mine for sample in plan.lanes[lane]]
        if self._pool:
            return [self._pool.result(plan.first_task + place) for place in range(len(wanted))]
        sources, config = self._mixture.sources, self._config
        return [
            read_planned(sources[source], row, length, config.pixels, config.pad_id) for source, row, length in wanted
        ]


def to_pack(lane: int, samples: Sequence[Sample], sequence_length: int, pad_id: int) -> Pack:
    """Samples one after another, then padding: ``pad_id`` at positions 0, 1, ..., nothing predicted.

    The lengths of the samples must sum to at most ``sequence_length``; without samples all is padding.
    """
    lengths = [len(sample.input_ids) for sample in samples]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    num_padding = sequence_length - int(starts[-1])
    assert num_padding >= 0, f"lane {lane}: {starts[-1]} tokens do not fit into {sequence_length}"
    padding = np.arange(num_padding, dtype=np.int32)
    with_patches = [sample.patches for sample in samples if sample.patches is not None]
    visual = [sample.visual_index + start for sample, start in zip(samples, starts, strict=False)]
    documents = tuple(Document(sample.key, sample.domain, sample.num_labels, sample.failure) for sample in samples)
    return Pack(
        lane=lane,
        documents=documents,
        input_ids=np.concatenate([*(s.input_ids for s in samples), np.full(num_padding, pad_id)]).astype(np.int32),
        labels=np.concatenate([*(s.labels for s in samples), np.full(num_padding, IGNORE)]).astype(np.int32),
        positions=np.concatenate([*(s.positions for s in samples), np.tile(padding, (3, 1))], axis=1).astype(np.int32),
        cu_seqlens=np.append(starts, [sequence_length] * bool(num_padding)).astype(np.int32),
        num_padding=num_padding,
        visual_index=np.concatenate([*visual, np.zeros(0)]).astype(np.int32),
        grids=np.concatenate([*(sample.grids for sample in samples), np.zeros((0, 3))]).astype(np.int32),
        patches=np.concatenate(with_patches) if with_patches else None,
    )
