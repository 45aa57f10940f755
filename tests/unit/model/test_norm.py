"""RMSNorm against transformers' module, value and gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron_qwen3vl.model.norm import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 1, 24), (5, 1, 3, 24), (0, 1, 24)])
def test_norm_equals_transformers(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

    generator = torch.Generator().manual_seed(0)
    hidden, upstream = (3 * torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype) for _ in range(2))
    ours = RMSNorm(SimpleNamespace(params_dtype=dtype, sequence_parallel=True), 24, eps=1e-2)
    theirs = Qwen3VLTextRMSNorm(24, eps=1e-2).to(dtype)
    results = []
    for module in (ours, theirs):
        with torch.no_grad():
            module.weight.copy_(torch.linspace(-1.0, 2.0, 24))
        leaf = hidden.clone().requires_grad_()
        output = module(leaf)
        results.append((output, *torch.autograd.grad(output, (leaf, module.weight), upstream)))
    # Rounded weights' gradients: transformers sums rounded products, ours rounds the sum.
    tolerances = (1e-6, 2e-6, 5e-6) if dtype == torch.float32 else (1e-2, 2e-2, 2e-2)
    for own, other, tolerance in zip(*results, tolerances, strict=True):
        assert own.dtype == other.dtype == dtype
        assert (own.float() - other.float()).norm() <= tolerance * other.float().norm()
