"""Invariant 1 in the running trainer: every trainable tensor receives a gradient, every frozen one none."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

import torch

from megatron_qwen3vl.model.build import module_of


class GradientCheck:
    """Watches one step's backward of the trainable ``modules``; a tensor whose hook never fired is cut off from the
    loss. Frozen tensors are checked whatever their module.
    """

    def __init__(self, chunks: Sequence[torch.nn.Module], modules: Set[str]) -> None:
        self.modules = modules
        self._reached: set[str] = set()
        self._handles = []
        self._parameters = {
            f"chunk{index}.{name}": parameter
            for index, chunk in enumerate(chunks)
            for name, parameter in chunk.named_parameters()
            if not parameter.requires_grad or module_of(name) in modules
        }
        for name, parameter in self._parameters.items():
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self._mark(name)))

    def _mark(self, name: str) -> Callable[[torch.Tensor], None]:
        def hook(gradient: torch.Tensor) -> None:
            self._reached.add(name)

        return hook

    def finish(self) -> list[str]:
        """Remove the hooks; one sentence per tensor that breaks the invariant."""
        for handle in self._handles:
            handle.remove()
        problems = []
        for name, parameter in self._parameters.items():
            if parameter.requires_grad and name not in self._reached:
                problems.append(f"{name} is trainable but received no gradient")
            if not parameter.requires_grad and parameter.grad is not None:
                problems.append(f"{name} is frozen but received a gradient")
        return problems
