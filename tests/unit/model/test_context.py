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


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (2, 2), (1, 9), (5, 6), (33, 150)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_prefix(queries: int, keys: int, groups: int) -> None:
    torch.manual_seed(0)
    shapes = [(queries, 4, 24), (keys, groups, 24), (keys, groups, 24)]
    inputs = [(3 * torch.randn(shape)).requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    output, expected = attend_prefix(*inputs, 0.2), masked(*exact, 0.2)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(output)
    own = torch.autograd.grad(output, inputs, gradient)
    theirs = torch.autograd.grad(expected, exact, gradient.double())
    for ours, reference in zip(own, theirs, strict=True):
        assert ours.shape == reference.shape
        assert (ours.double() - reference).norm() <= 1e-5 * reference.norm()
