"""Attention inside packed spans on PyTorch's own kernels: the ``core_attention`` of every layer spec here.

A span is a document of the language model's pack or one image (or frame group) of the ViT. Nothing ever attends across
a span, and no T x T mask or score matrix is made: each kernel call sees one span (CPU: the flash kernel for CPU; CUDA:
one variable-length flash call for all spans).

    query [T, 1, N, H], key and value [T, 1, G, H]  ->  [T, 1, N * H]        N query heads, G key/value heads

Queries and keys are turned by the spans' rotary angles first.

Under context parallelism documents are cut between ranks; context.py then attends across them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.attention.varlen import varlen_attn

from megatron_qwen3vl.model.context import Context, attend_exchanged, attend_gathered
from megatron_qwen3vl.model.rotary import rotate


@dataclass
class Spans(PackedSeqParams):
    """Span boundaries and rotary angles, in the shape that megatron-core passes through to core attention.

    ``qkv_format`` stays "sbhd": megatron-core then leaves the batch axis where it is. ``lengths`` is the CPU's copy of
    the boundaries (kernels launch by it); ``cosine`` and ``sine`` [T, 1, H / 2] are in the type of queries and keys,
    None where nothing is turned. Under context parallelism ``context`` says how the spans lie over the ranks; cosine
    and sine are then those of the own tokens.
    """

    lengths: tuple[int, ...] = ()
    cosine: torch.Tensor | None = None
    sine: torch.Tensor | None = None
    context: Context | None = None


def make_spans(
    lengths: tuple[int, ...],
    device: torch.device,
    angles: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    context: Context | None = None,
) -> Spans:
    """Spans of these lengths, one after another; empty ones are dropped.

    ``angles`` float32 [T, H / 2] are the rotary angles of every token; their cosine and sine are rounded to ``dtype``.
    """
    lengths = tuple(length for length in lengths if length)
    ends = torch.tensor((0, *itertools.accumulate(lengths)), dtype=torch.int32).to(device, non_blocking=True)
    longest = max(lengths, default=0)
    return Spans(
        qkv_format="sbhd",
        cu_seqlens_q=ends,
        cu_seqlens_kv=ends,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        lengths=lengths,
        cosine=None if angles is None else angles.cos()[:, None].to(dtype),
        sine=None if angles is None else angles.sin()[:, None].to(dtype),
        context=context,
    )


class PackedAttention(MegatronModule):
    """megatron-core's core attention contract; the mask type of the layer spec says whether it is causal."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        self.exchanges_heads = cp_comm_type == "a2a"
        self.causal = attn_mask_type == AttnMaskType.causal
        self.scale = config.kv_channels**-0.5 if softmax_scale is None else softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Spans | None = None,
    ) -> torch.Tensor:
        assert packed_seq_params is not None and attention_mask is None and attention_bias is None
        spans = packed_seq_params
        query, key, value = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        if spans.cosine is not None and spans.sine is not None:
            query, key = rotate(query, spans.cosine, spans.sine), rotate(key, spans.cosine, spans.sine)
        output_tnh = self._attend(query, key, value, spans)
        return output_tnh.reshape(query.shape[0], 1, -1)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Spans) -> torch.Tensor:
        on_whole_spans = partial(attend, spans=spans, causal=self.causal, scale=self.scale)
        if spans.context is None:
            return on_whole_spans(query, key, value)
        if self.exchanges_heads:
            return attend_exchanged(query, key, value, spans.context, on_whole_spans)
        return attend_gathered(query, key, value, spans.context, self.scale)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Spans, causal: bool, scale: float
) -> torch.Tensor:
    """query [T, N, H], key and value [T, G, H] -> [T, N, H], each token seeing its own span only."""
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        window = (-1, 0) if causal else (-1, -1)
        ends, longest = spans.cu_seqlens_q, spans.max_seqlen_q
        output = varlen_attn(
            query,
            key,
            value,
            ends,
            ends,
            longest,
            longest,
            scale=scale,
            window_size=window,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(output, torch.Tensor)
        return output
    return _attend_by_runs(query, key, value, spans.lengths, causal, scale)


def _attend_by_runs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...], causal: bool, scale: float
) -> torch.Tensor:
    """One kernel call per run of equally long neighbours (the frame groups of a video, images of one size)."""
    runs = [(length, sum(1 for _ in group)) for length, group in itertools.groupby(lengths)]
    sizes = [length * count for length, count in runs]
    outputs = []
    for (length, count), q, k, v in zip(runs, query.split(sizes), key.split(sizes), value.split(sizes), strict=True):
        q, k, v = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)
