"""Attention over documents that are cut between context-parallel ranks (parallel/sequence.py says how).

    gather       every rank gets all keys and values; its pieces of queries attend to their document's prefix
    all_to_all   every rank gets all tokens of a part of the heads, attends as one rank alone would, and gives them back
                 (DeepSpeed-Ulysses, arXiv 2309.14509)

Nothing of size T x T exists in either: on CUDA one variable-length call, on the CPU two kernel calls per piece, joined
by their log-sum-exps as in ring attention (arXiv 2310.01889).

Shapes: R ranks, T tokens of the whole batch, t = T / R own tokens, N query heads, G key/value heads, H head width,
n queries of a piece, m keys of a piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import tensor_parallel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn

from megatron_qwen3vl.parallel.sequence import Piece, token_index

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Context:
    """How a batch lies over the ranks of ``group``, as core attention wants it.

    ``order`` [T]: the places in the batch of all ranks' tokens, rank after rank; ``restore`` [T] is its inverse.
    ``key_index``: for each own piece its document's tokens up to the piece's end, by their place in ``order``;
    ``query_ends`` and ``key_ends`` int32 [pieces + 1] are the pieces' boundaries in queries and in those.
    """

    group: dist.ProcessGroup
    pieces: tuple[Piece, ...]
    order: torch.Tensor
    restore: torch.Tensor
    key_index: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor


def make_context(order: torch.Tensor, pieces: tuple[Piece, ...], group: dist.ProcessGroup) -> Context:
    """``order`` [T] and the own ``pieces`` as in ``share.Cut``."""
    device = order.device
    restore = torch.empty_like(order)
    restore[order] = torch.arange(len(order), device=device)
    prefixes = token_index([Piece(piece.document, piece.document, piece.stop) for piece in pieces])
    queries = (0, *itertools.accumulate(piece.stop - piece.start for piece in pieces))
    keys = (0, *itertools.accumulate(piece.stop - piece.document for piece in pieces))
    return Context(
        group=group,
        pieces=pieces,
        order=order,
        restore=restore,
        key_index=restore[torch.from_numpy(prefixes).to(device)],
        query_ends=torch.tensor(queries, dtype=torch.int32).to(device, non_blocking=True),
        key_ends=torch.tensor(keys, dtype=torch.int32).to(device, non_blocking=True),
    )


def attend_gathered(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, context: Context, scale: float
) -> torch.Tensor:
    """Own queries [t, N, H], keys and values [t, G, H] -> [t, N, H]; causal within documents."""
    # The backward sums over the ranks what each of them has to say about a key, and returns it to its owner.
    both = tensor_parallel.gather_from_sequence_parallel_region(
        torch.cat((key, value), dim=1), tensor_parallel_output_grad=True, group=context.group
    )
    keys, values = both[context.key_index].chunk(2, dim=1)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        output = varlen_attn(
            query,
            keys.contiguous(),
            values.contiguous(),
            context.query_ends,
            context.key_ends,
            max(piece.stop - piece.start for piece in context.pieces),
            max(piece.stop - piece.document for piece in context.pieces),
            scale=scale,
            window_size=(-1, 0),  # the last query sees the last key
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(output, torch.Tensor)
        return output
    query_sizes = [piece.stop - piece.start for piece in context.pieces]
    key_sizes = [piece.stop - piece.document for piece in context.pieces]
    parts = zip(query.split(query_sizes), keys.split(key_sizes), values.split(key_sizes), strict=True)
    return torch.cat([attend_prefix(q, k, v, scale) for q, k, v in parts])


def attend_exchanged(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, context: Context, attend: Attend
) -> torch.Tensor:
    """As ``attend_gathered``; ``attend`` takes [T, N / R, H], [T, G / R, H] twice, in the batch's order."""
    ranks = context.group.size()
    parts = [x.unflatten(1, (ranks, -1)) for x in (query, key, value)]
    sizes = [part.shape[2] for part in parts]
    # [t, R, heads / R, H] -> a block for each rank -> from each rank its tokens' block: [T, heads / R, H]
    blocks = torch.cat(parts, dim=2).transpose(0, 1).flatten(0, 1)
    whole = tensor_parallel.all_to_all(context.group, blocks)[context.restore]
    output = attend(*(x.contiguous() for x in whole.split(sizes, dim=1)))
    returned = tensor_parallel.all_to_all(context.group, output[context.order])
    return returned.unflatten(0, (ranks, -1)).transpose(0, 1).flatten(1, 2)


def attend_prefix(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """query [n, N, H], key and value [m, G, H], m >= n -> [n, N, H]: query i sees the first m - n + i + 1 keys."""
    if query.is_cuda:
        query_nh, key_nh, value_nh = (x.transpose(0, 1)[None] for x in (query, key, value))
        mask = causal_lower_right(len(query), len(key))
        gqa = query.shape[1] != key.shape[1]
        output = F.scaled_dot_product_attention(query_nh, key_nh, value_nh, mask, scale=scale, enable_gqa=gqa)
        return output[0].transpose(0, 1)
    joined: torch.Tensor = _PrefixOnCPU.apply(query, key, value, scale)
    return joined


class _PrefixOnCPU(torch.autograd.Function):
    """The flash kernel for CPU aligns a causal mask at the first key: prefix and own part are two calls.

    Their outputs join weighted by their log-sum-exps; with the joint output and log-sum-exp each call's backward gives
    its own part of the exact gradient.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        query_nh, key_nh, value_nh = _expanded(query, key, value)
        prefix = len(key) - len(query)
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, total = flash(query_nh, key_nh[:, :, prefix:], value_nh[:, :, prefix:], 0.0, True, scale=scale)
        if prefix:
            before, weight = flash(query_nh, key_nh[:, :, :prefix], value_nh[:, :, :prefix], 0.0, False, scale=scale)
            own, total = total, torch.logaddexp(total, weight)
            joined = output * (own - total).exp()[..., None] + before * (weight - total).exp()[..., None]
            output = joined.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, total)
        ctx.scale = scale
        return output[0].transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        query, key, value, output, total = ctx.saved_tensors
        heads = _expanded(query, key, value)
        gradient_nh = gradient.transpose(0, 1)[None]
        prefix = len(key) - len(query)

        def part(start: int, stop: int, causal: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            query_nh, key_nh, value_nh = heads[0], heads[1][:, :, start:stop], heads[2][:, :, start:stop]
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient_nh, query_nh, key_nh, value_nh, output, total, 0.0, causal, scale=ctx.scale
            )

        grad_query, grad_key, grad_value = part(prefix, len(key), causal=True)
        if prefix:
            before = part(0, prefix, causal=False)
            grad_query = grad_query + before[0]
            grad_key = torch.cat((before[1], grad_key), dim=2)
            grad_value = torch.cat((before[2], grad_value), dim=2)
        num_groups = key.shape[1]
        folded = [g[0].unflatten(0, (num_groups, -1)).sum(1).transpose(0, 1) for g in (grad_key, grad_value)]
        return grad_query[0].transpose(0, 1), folded[0], folded[1], None


def _expanded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> list[torch.Tensor]:
    """[n, N, H] and [m, G, H] -> [1, N, n or m, H], keys and values repeated for the query heads of their group."""
    repeat = query.shape[1] // key.shape[1]
    return [query.transpose(0, 1)[None], *(x.transpose(0, 1)[None].repeat_interleave(repeat, 1) for x in (key, value))]
