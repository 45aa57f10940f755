"""Rotary angles of the two transformers, in float32; megatron-core takes cosine and sine and rotates.

No buffers: a cast of the model to 16 bits must not reach positions or inverse frequencies.

Shapes: T tokens, P patches, H head width; the angles are [T, 1, 1, H], megatron-core's [sequence, batch, heads, width].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def mrope_angles(positions: torch.Tensor, head_dim: int, theta: float, section: Sequence[int]) -> torch.Tensor:
    """Interleaved MRoPE: positions [3, T] (t, h, w; integers) -> angles [T, 1, 1, head_dim].

    The axes alternate over the channels (t h w t h w ...) as long as ``section`` (channels per axis) lasts, the rest
    is t; transformers' ``Qwen3VLTextRotaryEmbedding``.
    """
    inverse = _inverse_frequencies(head_dim, theta, positions.device)
    axis = torch.tensor(channel_axes(head_dim, section), device=positions.device)
    angles_th = positions.float().t()[:, axis] * inverse
    return torch.cat((angles_th, angles_th), dim=-1)[:, None, None, :]


def channel_axes(head_dim: int, section: Sequence[int]) -> list[int]:
    """For each of the head_dim / 2 rotary channels the axis it turns by: 0 time, 1 height, 2 width."""
    axes = [0] * (head_dim // 2)
    for axis in (1, 2):
        for channel in range(axis, section[axis] * 3, 3):
            axes[channel] = axis
    return axes


def vision_angles(rows: torch.Tensor, columns: torch.Tensor, head_dim: int, theta: float) -> torch.Tensor:
    """2D rotary of the ViT: patch rows and columns [P] -> angles [P, 1, 1, head_dim].

    Half of the channels turn by the row, half by the column; transformers' ``Qwen3VLVisionRotaryEmbedding``.
    """
    inverse = _inverse_frequencies(head_dim // 2, theta, rows.device)
    angles_ph = torch.cat((rows.float()[:, None] * inverse, columns.float()[:, None] * inverse), dim=-1)
    return torch.cat((angles_ph, angles_ph), dim=-1)[:, None, None, :]


def _inverse_frequencies(dim: int, theta: float, device: torch.device) -> torch.Tensor:
    return 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim))
