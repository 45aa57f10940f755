"""The zigzag: every token once, equal counts, nearly equal work; and the ways of visual tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3vl.parallel.balance import assign_images
from megatron_qwen3vl.parallel.sequence import cut_documents, route_features, token_index


@settings(max_examples=200, deadline=None)
@given(ranks=st.integers(1, 8), lengths=st.lists(st.integers(0, 70), min_size=1, max_size=9))
def test_every_token_once_and_equal_counts(ranks: int, lengths: list[int]) -> None:
    lengths = [*lengths, ranks + -sum(lengths) % ranks]
    pieces = cut_documents(lengths, ranks)
    owned = [token_index(own) for own in pieces]
    assert {len(tokens) for tokens in owned} == {sum(lengths) // ranks}
    assert sorted(np.concatenate(owned).tolist()) == list(range(sum(lengths)))
    assert all((np.diff(tokens) > 0).all() for tokens in owned)
    starts = np.cumsum([0, *lengths])
    for own in pieces:
        for piece in own:
            document = np.searchsorted(starts, piece.start, side="right") - 1
            assert piece.document == starts[document] and piece.start < piece.stop <= starts[document + 1]


@settings(max_examples=100, deadline=None)
@given(ranks=st.integers(1, 8), length=st.integers(1, 500))
def test_a_document_is_a_zigzag_of_nearly_equal_pieces(ranks: int, length: int) -> None:
    length += -length % ranks
    pieces = cut_documents([length], ranks)
    if length >= 2 * ranks:
        places = [[sorted(p.start for own in pieces for p in own).index(p.start) for p in own] for own in pieces]
        assert places == [[rank, 2 * ranks - 1 - rank] for rank in range(ranks)]
    sizes = [p.stop - p.start for own in pieces for p in own]
    assert max(sizes) - min(sizes) <= 1
    work = [sum(sum(range(p.start + 1, p.stop + 1)) for p in own) for own in pieces]
    assert max(work) - min(work) <= 2 * length  # of about length^2 / 2 together


def test_tokens_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="10 tokens cannot be shared equally by 4 ranks"):
        cut_documents([7, 3], 4)


@settings(max_examples=100, deadline=None)
@given(ranks=st.integers(1, 5), data=st.data())
def test_visual_tokens_arrive_in_order(ranks: int, data: st.DataObject) -> None:
    """A simulated all-to-all: what each rank holds in the end are the rows of its positions, ascending."""
    count = data.draw(st.integers(0, 40))
    draw = st.lists(st.integers(0, ranks - 1), min_size=count, max_size=count)
    maker, holder = np.array(data.draw(draw), np.int64), np.array(data.draw(draw), np.int64)
    routes = [route_features(maker, holder, rank, ranks) for rank in range(ranks)]
    outboxes = [
        np.split(np.flatnonzero(maker == rank)[own.leaving], np.cumsum(own.sent)[:-1])
        for rank, own in enumerate(routes)
    ]
    for rank, own in enumerate(routes):
        received = [outboxes[source][rank] for source in range(ranks)]
        assert tuple(len(part) for part in received) == own.received
        assert (np.concatenate(received)[own.arriving] == np.flatnonzero(holder == rank)).all()


@settings(max_examples=100, deadline=None)
@given(ranks=st.integers(1, 6), costs=st.lists(st.floats(0.0, 1e6), max_size=20))
def test_images_by_cost(ranks: int, costs: list[float]) -> None:
    shared = assign_images(costs, ranks)
    assert sorted(image for images in shared for image in images) == list(range(len(costs)))
    loads = [sum(costs[image] for image in images) for images in shared]
    # Graham 1969: no rank beyond the mean by more than the dearest image
    assert max(loads) <= sum(costs) / ranks + max(costs, default=0.0) + 1e-6
