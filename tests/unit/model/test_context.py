"""Attention of a piece of a document to its prefix, against an explicit mask."""

from __future__ import annotations

import pytest
import torch

from megatron_qwen3vl.model.context import attend_prefix


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
