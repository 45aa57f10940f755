"""RMSNorm of the language model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.Module):
    """transformers' Qwen3VLTextRMSNorm: normalised in float32, cast, then scaled.

    megatron-core's own fallback refuses sequence parallelism; the mark on the weight makes its gradient summed over the
    tensor ranks, each of which sees a part of the tokens.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.is_cuda:
            return self.weight * F.rms_norm(hidden.float(), hidden.shape[-1:], eps=self.eps).to(hidden.dtype)
        normed: torch.Tensor = _Normalise.apply(hidden, self.weight, self.eps)
        return normed


class _Normalise(torch.autograd.Function):
    """The CPU has no fused kernel: torch composes a dozen passes over memory, this is eight and keeps only its input.

    y = w x r with r = 1 / sqrt(mean(x^2) + eps); dx = r (g w - x r mean(g w x r)); dw = sum(g x r).
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(hidden.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        return (hidden.float() * scale).to(hidden.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden, weight, scale = ctx.saved_tensors
        weight_d, gradient = weight.float(), gradient.float()
        normed = hidden.float() * scale
        product_td = (gradient * normed).flatten(0, -2)
        mean = torch.mv(product_td, weight_d).view_as(scale).div_(-hidden.shape[-1])
        to_hidden = normed.mul_(mean).addcmul_(gradient, weight_d).mul_(scale)
        return to_hidden.to(hidden.dtype), product_td.sum(0).to(weight.dtype), None
