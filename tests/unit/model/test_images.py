"""Images shared out over data and context-parallel ranks: every patch is encoded once, every feature arrives where its
token is. The collectives are simulated by threads, against a search for each patch by its bytes.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3vl.batch import Batch
from megatron_qwen3vl.model import images
from megatron_qwen3vl.model.images import Pictures, assign, decode, encode, image_cost
from megatron_qwen3vl.model.share import Work, cut_batch
from tests.parity import reference as ref

MODEL = ref.model_config("dense_tied")
VISION = MODEL.vision_config
AREA = VISION.spatial_merge_size**2


class Wire:
    """A group of as many threads as it has ranks: what one leaves for another is taken after all have written."""

    def __init__(self, size: int) -> None:
        self.ranks, self.barrier = size, threading.Barrier(size, timeout=20)
        self.boxes: dict[tuple[int, int], Any] = {}
        self.own = threading.local()
        self.messages = 0

    def size(self) -> int:
        return self.ranks

    def rank(self) -> int:
        return int(self.own.rank)

    def gather(self, words: np.ndarray, group: Wire, device: torch.device) -> list[np.ndarray]:
        self.boxes[self.rank(), -1] = words
        self.barrier.wait()
        found = [self.boxes[rank, -1] for rank in range(self.ranks)]
        self.barrier.wait()
        return found

    def all_to_all(
        self, output: torch.Tensor, given: torch.Tensor, received: list[int], sent: list[int], group: Wire
    ) -> None:
        for rank, part in enumerate(given.split(sent)):
            self.boxes[self.rank(), rank] = part
        self.barrier.wait()
        parts = [self.boxes[rank, self.rank()] for rank in range(self.ranks)]
        assert [len(part) for part in parts] == received
        output.copy_(torch.cat(parts))
        self.messages += self.rank() == 0
        self.barrier.wait()


def work_of_all(
    batches: list[list[Batch]], num_cp: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[list[Work]], Wire]:
    """``share_images`` of every rank; ``batches`` by neighbour and micro-batch."""
    wire = Wire(len(batches) * num_cp)
    monkeypatch.setattr(images, "gather_integers", wire.gather)
    monkeypatch.setattr(dist, "all_to_all_single", wire.all_to_all)
    found: list[list[Work]] = [[] for _ in range(wire.ranks)]

    def run(rank: int) -> None:
        wire.own.rank = rank
        own = [cut_batch(batch, rank % num_cp, num_cp) for batch in batches[rank // num_cp]]
        found[rank] = images.share_images(own, VISION, wire, num_cp)  # type: ignore[arg-type]

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(wire.ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(found)
    return found, wire


def make_batches(neighbours: int) -> list[list[Batch]]:
    """Two micro-batches each; the second neighbour has no picture in the first of them, nobody in a third."""
    cases = [case for seed in range(neighbours) for case in ref.standard_cases(MODEL, seed)]
    text = [case for case in cases if not len(case.sample.grids)]
    seen = [case for case in cases if len(case.sample.grids)]
    found = []
    for number in range(neighbours):
        first = text[:1] if number == 1 else seen[number::neighbours]
        parts = [first, seen[number + 1 :: neighbours + 1], text[:1]]
        found.append([ref.make_batch(MODEL, part, length=480) for part in parts])
    return found


@pytest.mark.parametrize(("neighbours", "num_cp"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (4, 1)])
def test_features_arrive_where_their_tokens_are(neighbours: int, num_cp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The "feature" of a visual token is its first patch; after the exchange each stands at its position."""
    batches = make_batches(neighbours)
    all_work, wire = work_of_all(batches, num_cp, monkeypatch)
    assert wire.messages == (2 if neighbours > 1 else 0)  # none for the third micro-batch
    for number in range(3):
        work = [own[number] for own in all_work]
        encoded = torch.cat([w.batch.patches for w in work if len(w.batch.patches)] or [torch.zeros(0, 96)])
        held = torch.cat([b[number].patches for b in batches if len(b[number].patches)] or [torch.zeros(0, 96)])
        assert sorted(map(bytes, encoded.numpy())) == sorted(map(bytes, held.numpy()))
        for own in work:
            counts = own.batch.grids.prod(dim=1).tolist()
            assert sum(counts) == len(own.batch.patches)
            assert own.vision_costs == work[0].vision_costs
        costs = [sum(image_cost(VISION, n) for n in w.batch.grids.prod(dim=1).tolist()) for w in work]
        assert costs == pytest.approx(work[0].vision_costs)
        features = [own.batch.patches[::AREA] for own in work]
        for rank, own in enumerate(work):
            if own.routes is None:
                arrived = features[rank]
            else:
                boxes = [
                    features[source][torch.from_numpy(theirs.routes.leaving)].split(list(theirs.routes.sent))[rank]
                    for source, theirs in enumerate(work)
                ]
                assert tuple(map(len, boxes)) == own.routes.received
                present = [box for box in boxes if len(box)]
                arrived = torch.cat(present)[torch.from_numpy(own.routes.arriving)] if present else features[rank][:0]
            whole = batches[rank // num_cp][number]
            places = own.batch.visual_index
            if own.cut is not None:
                length = len(own.batch.input_ids)
                places = own.cut.order[rank % num_cp * length :][:length][places]
            rows = np.searchsorted(whole.visual_index.numpy(), places.numpy())
            assert len(arrived) == len(rows)
            if len(rows):
                assert torch.equal(arrived, whole.patches[::AREA][rows])


def test_one_rank_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ((batch, *_),) = batches = make_batches(1)
    ((own, *_),), _ = work_of_all(batches, 1, monkeypatch)
    assert own.batch.patches is batch.patches and own.routes is None and own.cut is None


numbers = st.integers(0, 3)
pictures = st.lists(st.tuples(st.lists(st.integers(1, 9), max_size=5), st.lists(numbers, max_size=30)), max_size=4)


@settings(max_examples=100, deadline=None)
@given(pictures)
def test_what_is_said_is_understood(said: list[tuple[list[int], list[int]]]) -> None:
    own = [
        Pictures(np.array([[1, 2, 2 * n] for n in sizes], np.int64).reshape(-1, 3), np.array(holder, np.int64))
        for sizes, holder in said
    ]
    heard = decode(encode(own)) if own else []
    for one, other in zip(own, heard, strict=True):
        assert np.array_equal(one.grids, other.grids) and np.array_equal(one.holder, other.holder)


def test_a_long_video_is_split_between_frame_groups() -> None:
    """Sixteen equal frame groups of one document: four for each of four ranks, with nothing to do for the neighbour."""
    video = Pictures(np.array([[1, 8, 8]] * 16), np.zeros(16 * 16, np.int64))
    nothing = Pictures(np.zeros((0, 3), np.int64), np.zeros(0, np.int64))
    plan = assign([video, nothing], VISION, 2, np.zeros(4))
    assert np.bincount(plan.maker, minlength=4).tolist() == [4] * 4
    assert len(set(plan.costs)) == 1
    assert (plan.carrier // 2 == 0).all() and (plan.carrier % 2 == plan.maker % 2).all()


def test_unequal_shares_take_turns() -> None:
    """One picture in each micro-batch: every rank gets as many."""
    alone = Pictures(np.array([[1, 8, 8]]), np.zeros(16, np.int64))
    done = np.zeros(3)
    for _ in range(6):
        done += assign([alone], VISION, 3, done).costs
    assert len(set(done)) == 1


def test_neighbours_must_agree_on_the_number_of_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = make_batches(2)
    monkeypatch.setattr(images, "gather_integers", lambda words, *_: [words, np.zeros(0, np.int64)])
    own = [Pictures(batch.grids.numpy(), np.zeros(len(batch.visual_index), np.int64)) for batch in one]
    group = Wire(2)
    group.own.rank = 0
    with pytest.raises(ValueError, match="shorter"):
        images.exchange(own, group, 1, torch.device("cpu"))
