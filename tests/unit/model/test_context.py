"""Attention of a piece of a document to its prefix, against an explicit mask."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from megatron_qwen3vl.model.attention import attend, make_spans
from megatron_qwen3vl.model.context import Context, attend_gathered, attend_prefix, make_context
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import Groups, shutdown, start_groups
from megatron_qwen3vl.parallel.layout import Layout
from megatron_qwen3vl.parallel.sequence import cut_documents, token_index
from tests.parity import reference as ref


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    yield start_groups(Layout.from_config(ref.PLAIN, 1), start_device("cpu"))
    shutdown()


def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = torch.einsum("qnh,knh->nqk", query, key) * scale
    offset = len(key) - len(query)
    sees = torch.arange(len(key))[None] <= torch.arange(len(query))[:, None] + offset
    return torch.einsum("nqk,knh->qnh", scores.masked_fill(~sees, -torch.inf).softmax(-1), value)


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 9), (5, 6), (33, 150)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_prefix(queries: int, keys: int, groups: int) -> None:
    torch.manual_seed(0)
    shapes = [(queries, 4, 24), (keys, groups, 24), (keys, groups, 24)]
    inputs = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    output, expected = attend_prefix(*inputs, 0.2), masked(*inputs, 0.2)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    gradient = torch.randn_like(output)
    own = torch.autograd.grad(output, inputs, gradient)
    theirs = torch.autograd.grad(expected, inputs, gradient)
    for ours, reference in zip(own, theirs, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


LENGTHS = (5, 23, 1, 2, 30, 11)  # some shorter than twice the ranks


def contexts(ranks: int, groups: Groups) -> list[Context]:
    """Every rank's view; the group is this process alone, so that what would be gathered has to be given whole."""
    pieces = cut_documents(LENGTHS, ranks)
    order = torch.from_numpy(token_index([piece for own in pieces for piece in own]))
    return [make_context(order, tuple(own), groups.cp) for own in pieces]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_pieces_attend_as_whole_documents(ranks: int, groups: Groups) -> None:
    torch.manual_seed(1)
    tokens = sum(LENGTHS)
    query, key, value = (torch.randn(tokens, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    whole = partial(attend, spans=make_spans(LENGTHS, query.device), causal=True, scale=0.3)
    expected = whole(query, key, value)
    for rank, context in enumerate(contexts(ranks, groups)):
        own = context.order.chunk(ranks)[rank]
        output = attend_gathered(query[own], key[context.order], value[context.order], context, 0.3)
        torch.testing.assert_close(output, expected[own], rtol=1e-10, atol=1e-10)
