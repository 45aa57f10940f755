"""What a step costs: seconds by phase, and the memory of this rank. Two equal runs differ in these figures."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_qwen3vl.parallel.device import Device


class StepClock:
    """Seconds of the phases of a step, one after another, and of the saving since the step before."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self._phases: dict[str, float] = {}
        self._saving = 0.0

    def begin(self) -> None:
        self._began = self._last = time.perf_counter()
        self._phases = {}

    def end(self, phase: str) -> None:
        """The phase lasted from the end of the one before until now. On CUDA that is what the host waited."""
        now = time.perf_counter()
        self._phases[phase] = now - self._last
        self._last = now

    @contextmanager
    def saving(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._saving += time.perf_counter() - began

    def figures(self) -> dict[str, float]:
        """``seconds`` of the step until now, of each phase, and of the saving since this was last asked."""
        saving, self._saving = self._saving, 0.0
        named = {f"{phase}_seconds": seconds for phase, seconds in self._phases.items()}
        return {"seconds": time.perf_counter() - self._began, **named, "save_seconds": saving}


def peak_memory(device: Device) -> int:
    """Bytes: on CUDA the most that tensors of this process have held at once, else its largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
