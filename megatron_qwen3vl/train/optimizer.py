"""AdamW on megatron-core's distributed optimizer (ZeRO-1), the schedule, and a step that refuses non-finite gradients.

Both types take this path: in bfloat16 there are fp32 master weights, in float32 the weights are their own masters.
Gradients are reduced in fp32 either way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import ChainedOptimizer, ParamGroupOverride, ParamKey, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer_config import ParamWithNamePredicate

from megatron_qwen3vl.config.schema import LearningRateScale, OptimizerConfig
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.model.build import module_of
from megatron_qwen3vl.parallel.groups import Groups, all_agree


@dataclass(frozen=True)
class StepResult:
    """``grad_norm`` is the global L2 norm before clipping, inf or nan where a gradient was."""

    grad_norm: float
    skipped: bool


def build_optimizer(chunks: Sequence[torch.nn.Module], optimizer: OptimizerConfig, dtype: str) -> ChainedOptimizer:
    """The optimizer of a stage, over the chunks' trainable parameters (megatron DistributedDataParallel chunks).

    Collective over all ranks. A rank whose chunks hold no trainable parameter takes part with empty groups.
    """
    config = megatron_optimizer.OptimizerConfig(
        optimizer="adam",
        lr=optimizer.lr,
        min_lr=optimizer.min_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_eps=optimizer.eps,
        clip_grad=optimizer.clip_grad,
        bf16=dtype == "bfloat16",
        params_dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32,
        use_distributed_optimizer=True,
    )
    built = get_megatron_optimizer(
        config, list(chunks), config_overrides=_overrides(optimizer.lr_scale), use_gloo_process_groups=False
    )
    assert isinstance(built, ChainedOptimizer), "megatron-core 0.16 always chains"
    for group in built.param_groups:
        group["weight_decay"] = optimizer.weight_decay * group["wd_mult"]
    for part in _real_parts(built):
        part.init_state_fn(part.optimizer)  # a checkpoint needs moments even when every step so far was refused
    return built


def learning_rate(optimizer: OptimizerConfig, step: int, num_steps: int) -> float:
    """The rate of step ``step``, counted from 1, before the per-module scale.

    lr x step / warmup while step <= warmup; from there the schedule falls (or not) and reaches ``min_lr`` at
    ``num_steps``. Raises UserError for an unknown schedule.
    """
    warmup = optimizer.warmup_steps
    if step <= warmup:
        return optimizer.lr * step / warmup
    if optimizer.schedule == "constant":
        return optimizer.lr
    progress = min(1.0, (step - warmup) / (num_steps - warmup)) if num_steps > warmup else 1.0
    if optimizer.schedule == "linear":
        share = 1.0 - progress
    elif optimizer.schedule == "cosine":
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        raise UserError(f"optimizer.schedule={optimizer.schedule}: unknown; use constant, linear or cosine")
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * share


def set_learning_rate(optimizer: ChainedOptimizer, rate: float) -> None:
    """Give every group its rate: ``rate`` x its module's ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]


@torch.no_grad()
def step_optimizer(optimizer: ChainedOptimizer, groups: Groups, apply: bool = True) -> StepResult:
    """Clip and apply the reduced gradients, or change nothing at all.

    The step is skipped on all ranks when any rank has a non-finite gradient or says ``apply=False``; weights, moments
    and step count then stay as they are, to the bit. Clipping multiplies by clip_grad / (norm + 1e-6) when the norm is
    larger; ``clip_grad`` 0 never clips. Collective over all ranks.
    """
    found_inf = optimizer.prepare_grads()
    grad_norm = float(optimizer.get_grad_norm())
    # The norm leaves out what other ranks hold too (replicas under tp, tied embeddings): look at all gradients.
    finite = math.isfinite(grad_norm) and _all_finite(optimizer)
    if not all_agree(apply and finite and not found_inf):
        return StepResult(grad_norm if finite else math.nan, skipped=True)
    for part in _real_parts(optimizer):
        parameters = part.get_parameters()
        if part.config.clip_grad > 0 and parameters:
            clip_grad_by_total_norm_fp32(parameters, part.config.clip_grad, grad_norm)
    optimizer.step_with_ready_grads()
    return StepResult(grad_norm, skipped=False)


def _overrides(scale: LearningRateScale) -> dict[ParamKey, ParamGroupOverride]:
    def no_decay(parameter: torch.nn.Parameter, name: str) -> bool:
        return parameter.dim() == 1 or name.endswith(".bias")

    overrides: dict[ParamKey, ParamGroupOverride] = {
        ParamKey(with_name_predicate=ParamWithNamePredicate("no_decay", no_decay)): ParamGroupOverride(wd_mult=0.0)
    }
    for module, factor in (("vision", scale.vision), ("merger", scale.merger), ("language", scale.language)):

        def belongs(parameter: torch.nn.Parameter, name: str, module: str = module) -> bool:
            return module_of(name) == module

        key = ParamKey(with_name_predicate=ParamWithNamePredicate(module, belongs))
        # The type does not list lr_mult, but every group has it and checkpoints tell groups apart by it.
        overrides[key] = {"lr_mult": factor}
    return overrides


def _real_parts(optimizer: ChainedOptimizer) -> list[megatron_optimizer.MegatronOptimizer]:
    return [part for part in optimizer.chained_optimizers if not part.is_stub_optimizer]


def _all_finite(optimizer: ChainedOptimizer) -> bool:
    grads = [p.grad for part in _real_parts(optimizer) for p in part.get_parameters() if p.grad is not None]
    # A norm carries nan along; like the global one it overflows, and refuses, above 1e19. (ord=inf is slow on a CPU.)
    return not grads or bool(torch.stack(torch._foreach_norm(grads)).isfinite().all())
