"""AdamW that keeps ``step`` in its parameter groups, as the fused Adams of Transformer Engine and Apex do.

megatron-core's distributed checkpoint expects the step count there; ``torch.optim.AdamW`` keeps one per parameter and
loses it. The update is Loshchilov and Hutter's (arXiv 1711.05101), in the order of operations of ``torch.optim.AdamW``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

BATCH_ELEMENTS = 1 << 26  # bounds the temporary denominator, which would otherwise be as large as the model


class AdamW(torch.optim.Optimizer):
    """Drop-in for the fused Adams as megatron-core calls them; deterministic to the bit.

    Raises ValueError for ``adam_w_mode=False``: only decoupled weight decay is offered.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        adam_w_mode: bool = True,
    ) -> None:
        if not adam_w_mode:
            raise ValueError("only AdamW (decoupled weight decay) is available without Transformer Engine or Apex")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None, "megatron-core calls step without a closure"
        for group in self.param_groups:
            group["step"] += 1  # empty groups too: after resharding they may hold parameters
            for params in _batches([p for p in group["params"] if p.grad is not None]):
                self._update(params, group)

    def _update(self, params: list[torch.Tensor], group: dict[str, Any]) -> None:
        for param in params:
            if not self.state[param]:
                self.state[param] = {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
        grads = [param.grad for param in params if param.grad is not None]
        first = [self.state[param]["exp_avg"] for param in params]
        second = [self.state[param]["exp_avg_sq"] for param in params]
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, (1 - beta2 ** group["step"]) ** 0.5)
        torch._foreach_add_(denominator, group["eps"])
        torch._foreach_addcdiv_(params, first, denominator, -group["lr"] / (1 - beta1 ** group["step"]))


def _batches(params: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    batch: list[torch.Tensor] = []
    elements = 0
    for param in params:
        if batch and elements + param.numel() > BATCH_ELEMENTS:
            yield batch
            batch, elements = [], 0
        batch.append(param)
        elements += param.numel()
    if batch:
        yield batch
