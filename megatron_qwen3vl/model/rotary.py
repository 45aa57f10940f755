"""Rotary angles of the two transformers, in float32, and the rotation of queries and keys by them.

No buffers: a cast of the model to 16 bits must not reach positions or inverse frequencies.

Shapes: T tokens, P patches, N heads, H head width. Channel c turns with channel c + H / 2 by one angle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def mrope_angles(positions: torch.Tensor, head_dim: int, theta: float, section: Sequence[int]) -> torch.Tensor:
    """Interleaved MRoPE: positions [3, T] (t, h, w; integers) -> angles [T, head_dim / 2].

    The axes alternate over the channels (t h w t h w ...) as long as ``section`` (channels per axis) lasts, the rest
    is t; transformers' ``Qwen3VLTextRotaryEmbedding``.
    """
    inverse = _inverse_frequencies(head_dim, theta, positions.device)
    axis = torch.tensor(channel_axes(head_dim, section), device=positions.device)
    return positions.float().t()[:, axis] * inverse


def channel_axes(head_dim: int, section: Sequence[int]) -> list[int]:
    """For each of the head_dim / 2 rotary channels the axis it turns by: 0 time, 1 height, 2 width."""
    axes = [0] * (head_dim // 2)
    for axis in (1, 2):
        for channel in range(axis, section[axis] * 3, 3):
            axes[channel] = axis
    return axes


def vision_angles(rows: torch.Tensor, columns: torch.Tensor, head_dim: int, theta: float) -> torch.Tensor:
    """2D rotary of the ViT: patch rows and columns [P] -> angles [P, head_dim / 2].

    Half of the channels turn by the row, half by the column; transformers' ``Qwen3VLVisionRotaryEmbedding``.
    """
    inverse = _inverse_frequencies(head_dim // 2, theta, rows.device)
    return torch.cat((rows.float()[:, None] * inverse, columns.float()[:, None] * inverse), dim=-1)


def _inverse_frequencies(dim: int, theta: float, device: torch.device) -> torch.Tensor:
    return 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim))


def rotate(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Queries or keys [T, N, H] turned by the angles whose cosine and sine [T, 1, H / 2] have their type.

    megatron-core's own rotation computes both again in every layer, copies twice, and keeps its input.
    """
    rotated: torch.Tensor = _Rotation.apply(heads, cosine, sine)
    return rotated


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turn(heads, cosine, sine, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turn(gradient, cosine, sine, -1), None, None


def _turn(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, direction: int) -> torch.Tensor:
    turned = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    (first, second), (to_first, to_second) = heads.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    torch.mul(first, cosine, out=to_first).addcmul_(second, sine, value=-direction)
    torch.mul(second, cosine, out=to_second).addcmul_(first, sine, value=direction)
    return turned
