"""CUDA with NCCL or the CPU with gloo, decided once. The only module that patches a library.

megatron-core assumes CUDA, and in places Transformer Engine. Each function below gives the answers it needs where one
of them is missing; which call wants which answer is noted beside it. On CUDA nothing of torch is touched.

Not answered here, because it is a setting: with gloo a pipeline that overlaps its messages (``overlap_p2p_comm``,
needed for vpp) must keep ``deallocate_pipeline_outputs`` off. gloo reads a tensor while it is being sent, and megatron
frees it before that; losses then become wrong or NaN, now and then.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.utils._device import _device_constructors

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.parallel.adamw import AdamW


@dataclass(frozen=True)
class Device:
    """``device`` carries no index: with CUDA it means the process's current GPU, which ``groups.start_groups`` sets."""

    type: Literal["cuda", "cpu"]
    device: torch.device
    backend: Literal["nccl", "gloo"]


def start_device(want: str = "auto") -> Device:
    """Decide between CUDA and the CPU and make megatron-core run there. Idempotent.

    ``want`` is "auto" (CUDA where there is a GPU), "cuda" or "cpu". Call before any model is built. After the CPU was
    chosen a later "cuda" is refused. Raises UserError for an unknown device, or "cuda" without a GPU.
    """
    if want not in ("auto", "cuda", "cpu"):
        raise UserError(f"device={want}: unknown; use auto, cuda or cpu")
    patched = torch.cuda.Stream is _Stream
    has_cuda = torch.cuda.is_available() and not patched
    if want == "cuda" and not has_cuda:
        raise UserError("device=cuda: this process has no CUDA device; use device=cpu")
    _answer_for_transformer_engine()
    if has_cuda and want != "cpu":
        return Device("cuda", torch.device("cuda"), "nccl")
    if not patched:
        _answer_device_calls()
        _answer_tensor_calls()
        _answer_random_calls()
        _answer_megatron_calls()
        _answer_unequal_collectives()
        _answer_coalesced_gathers()
    return Device("cpu", torch.device("cpu"), "gloo")


def forget_loss_scale() -> None:
    """Between two models of one process: megatron's scale of the routers' loss keeps the shape of its first value."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    MoEAuxLossAutoScaler.main_loss_backward_scale = None


class _Stream:
    """The one queue of a CPU: nothing to wait for."""

    def __init__(self, device: object = None, priority: int = 0) -> None:
        pass

    def wait_stream(self, stream: object) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass

    def record_event(self, event: object = None) -> _Event:
        return _Event()

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class _Event:
    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        pass

    def record(self, stream: object = None) -> None:
        pass

    def wait(self, stream: object = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class _Generators:
    """``torch.cuda.default_generators``; whatever the index, the CPU's generator."""

    def __getitem__(self, index: object) -> torch.Generator:
        return torch.default_generator


def _answer_for_transformer_engine() -> None:
    """What megatron-core 0.16.1 leaves undefined or unusable without Transformer Engine (and Apex)."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # the router compares it with None
    if optimizer.USING_PYTORCH_OPTIMIZER:
        optimizer.Adam = AdamW  # see adamw.py
        distrib_optimizer.Adam = AdamW  # it refuses any other class
        distrib_optimizer.HAVE_APEX_OR_TE = True  # looks for the step count in the parameter groups
        distrib_optimizer.USING_APEX_OPTIMIZER = True
        optimizer.USING_PYTORCH_OPTIMIZER = False


def _answer_device_calls() -> None:
    """Devices, streams and events: DistributedDataParallel, schedules, token dispatcher, checkpoint writer."""
    stream = _Stream()
    cuda: Any = torch.cuda
    # The default device, not plain "cpu": `with torch.device("meta")` then builds a model without memory.
    cuda.current_device = torch.get_default_device
    cuda.device_count = lambda: 1
    cuda.set_device = _nothing
    cuda.synchronize = _nothing
    cuda.empty_cache = _nothing
    cuda.Stream = _Stream
    cuda.Event = _Event
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.current_stream = lambda device=None: stream
    cuda.default_stream = lambda device=None: stream
    cuda.set_stream = _nothing


def _answer_tensor_calls() -> None:
    """Methods that would move to the GPU, and factories called with ``device="cuda"``."""
    tensor: Any = torch.Tensor
    module: Any = torch.nn.Module
    tensor.cuda = lambda self, *where, **how: self
    tensor.record_stream = _nothing
    module.cuda = lambda self, device=None: self
    plain_type = torch.Tensor.type

    @functools.wraps(plain_type)
    def type_as_on_cuda(self: torch.Tensor, *dtype: Any, **how: Any) -> Any:
        # DistributedOptimizer and clip_grads compare type() with "torch.cuda.FloatTensor"
        answer = plain_type(self, *dtype, **how)
        return answer if dtype or how else answer.replace("torch.", "torch.cuda.", 1)

    tensor.type = type_as_on_cuda
    # `with torch.device(...)` knows factories by identity, from a set made at its first use: let it know torch's own
    _device_constructors()
    for name in [
        "arange",
        "empty",
        "empty_like",
        "full",
        "full_like",
        "ones",
        "ones_like",
        "rand",
        "randint",
        "randn",
        "tensor",
        "as_tensor",
        "zeros",
        "zeros_like",
    ]:
        setattr(torch, name, _without_cuda(getattr(torch, name)))


def _without_cuda(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            del kwargs["device"]
        return factory(*args, **kwargs)

    return make


def _answer_random_calls() -> None:
    """The tensor-parallel random states live in the CPU's generator."""
    from megatron.core.tensor_parallel import random as megatron_random

    cuda: Any = torch.cuda
    for module in (cuda, cuda.random):
        module.get_rng_state = lambda device="cuda": torch.default_generator.get_state()
        module.set_rng_state = lambda state, device="cuda": torch.default_generator.set_state(state)
        module.manual_seed = lambda seed: torch.default_generator.manual_seed(seed)
        module.initial_seed = lambda: torch.default_generator.initial_seed()
    cuda.default_generators = _Generators()
    for module in (cuda, megatron_random):
        module._lazy_call = lambda call, **order: call()
        module._lazy_init = _nothing
    # It warns that the CPU's state changed inside a fork of the GPU's: here they are the same generator.
    logging.getLogger(megatron_random.__name__).addFilter(lambda record: "RNG state changed" not in record.msg)


def _answer_megatron_calls() -> None:
    from megatron.core.transformer.moe import token_dispatcher

    plain_move = token_dispatcher.maybe_move_tensor_to_cpu

    def move_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        # gloo's all_to_all_single wants lists of integers, and megatron converts only what was on a GPU
        moved = plain_move(tensor, as_numpy, record_stream)
        return moved.numpy() if as_numpy and torch.is_tensor(moved) else moved

    token_dispatcher.maybe_move_tensor_to_cpu = move_to_cpu
    # megatron wraps small functions in torch.compile, also for the CPU: seconds of C++ compilation for each
    torch.compiler.set_stance("force_eager")


def _answer_unequal_collectives() -> None:
    """gloo gathers and scatters equal sizes only; experts divided by EP and ETP exchange what the routers chose."""
    distributed: Any = dist
    gather, scatter = distributed.all_gather, distributed.reduce_scatter

    def all_gather(parts: list[torch.Tensor], own: torch.Tensor, **where: Any) -> Any:
        if len({len(part) for part in parts}) == 1:
            return gather(parts, own, **where)
        sizes = [len(part) for part in parts]
        whole = own.new_empty(sum(sizes), *own.shape[1:])
        dist.all_to_all_single(whole, torch.cat([own] * len(sizes)), sizes, [len(own)] * len(sizes), **where)
        for part, received in zip(parts, whole.split(sizes), strict=True):
            part.copy_(received)
        return None

    def reduce_scatter(own: torch.Tensor, parts: list[torch.Tensor], **where: Any) -> Any:
        if len({len(part) for part in parts}) == 1:
            return scatter(own, parts, **where)
        received = own.new_empty(len(parts), *own.shape)
        sizes = [len(part) for part in parts]
        dist.all_to_all_single(received.flatten(0, 1), torch.cat(parts), [len(own)] * len(parts), sizes, **where)
        own.copy_(received.sum(0))
        return None

    distributed.all_gather, distributed.reduce_scatter = all_gather, reduce_scatter


@dataclass(frozen=True)
class _Gather:
    """An all-gather that takes place when it is waited for."""

    group: Any
    outputs: list[torch.Tensor]
    inputs: list[torch.Tensor]

    def wait(self) -> None:
        for output, own in zip(self.outputs, self.inputs, strict=True):
            dist.all_gather_into_tensor(output, own, group=self.group)


def _answer_coalesced_gathers() -> None:
    """Overlap of gathered weights: several of torch 2.13's coalesced all-gathers under way in gloo's threads broke the
    heap there, about once in a thousand steps ("malloc(): unaligned tcache chunk", in AsyncAllgatherCoalescedWork).

    All ranks of a group wait for their weights in the order of the same modules, so deferring is safe.
    """
    group: Any = dist.ProcessGroup
    for name in ("all_gather_single_coalesced", "allgather_into_tensor_coalesced"):  # since and before torch 2.13
        if hasattr(group, name):
            setattr(group, name, lambda self, outputs, inputs, *options: _Gather(self, outputs, inputs))


def _nothing(*args: object, **kwargs: object) -> None:
    pass
