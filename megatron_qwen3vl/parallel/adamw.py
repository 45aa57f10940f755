"""AdamW that keeps ``step`` in its parameter groups, as the fused Adams of Transformer Engine and Apex do.

megatron-core's distributed checkpoint expects the step count there; ``torch.optim.AdamW`` keeps one per parameter and
loses it. The update is Loshchilov and Hutter's (arXiv 1711.05101), by the fused kernel of ``torch.optim.AdamW``: one
pass over memory, nothing temporary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


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
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)

    def _update(self, params: list[torch.Tensor], group: dict[str, Any]) -> None:
        for param in params:
            if not self.state[param]:
                self.state[param] = {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
        grads = [param.grad for param in params if param.grad is not None]
        first = [self.state[param]["exp_avg"] for param in params]
        second = [self.state[param]["exp_avg_sq"] for param in params]
        step = torch.tensor(float(group["step"]), device=params[0].device)
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            params,
            grads,
            first,
            second,
            [],
            [step] * len(params),
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
