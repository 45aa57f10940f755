"""Packed attention against a dense masked softmax, and its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from megatron_qwen3vl.model.attention import attend, make_spans

CPU = torch.device("cpu")


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], causal: bool
) -> torch.Tensor:
    """Softmax over a T x T mask: blocks of the documents, the lower triangle where causal."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = owner[:, None] == owner[None, :]
    if causal:
        seen &= torch.ones_like(seen).tril()
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.einsum("tnh,snh->nts", query, key) * query.shape[-1] ** -0.5
    return torch.einsum("nts,snh->tnh", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 2, 16), (3, 3, 72), (6, 1, 12)])
@pytest.mark.parametrize("lengths", [[1, 7, 7, 7, 2, 5], [29], [4, 4, 1]])
def test_equals_dense_attention(causal: bool, heads: int, groups: int, width: int, lengths: list[int]) -> None:
    torch.manual_seed(0)
    shapes = [(sum(lengths), n, width) for n in (heads, groups, groups)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    spans = make_spans(tuple(lengths), CPU)
    weight = torch.randn(shapes[0], dtype=torch.float64)
    own = attend(*inputs, spans, causal, width**-0.5)
    own_gradients = torch.autograd.grad((own * weight).sum(), inputs)
    expected = dense(*inputs, lengths, causal)
    torch.testing.assert_close(own, expected)
    for gradient, reference in zip(own_gradients, torch.autograd.grad((expected * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, reference)


def test_empty_spans_are_dropped() -> None:
    spans = make_spans((0, 3, 0, 2), CPU)
    assert spans.lengths == (3, 2) and spans.cu_seqlens_q.tolist() == [0, 3, 5] and spans.max_seqlen_q == 3


MEASURE = """
import resource, torch
from megatron_qwen3vl.model.attention import attend, make_spans
torch.set_num_threads(1)
length = 8192
query = torch.randn(length, 2, 8, requires_grad=True)
# As megatron-core hands them over: slices of one projection.
mixed = torch.randn(length, 1, 32, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attend(query, mixed[..., 16:24], mixed[..., 24:], make_spans((length,), query.device), True, 0.35).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_holds_no_square() -> None:
    """One document of 8,192 tokens: its T x T scores alone would take 268 MB a head."""
    result = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 100 * 1024
