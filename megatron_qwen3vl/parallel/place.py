"""Where this process stands among all, as the launcher says. The only reader of RANK and WORLD_SIZE.

Without torch, so that a configuration is checked, and refused, before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_qwen3vl.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where this process stands among all; ``local_rank`` is its place on its node."""

    rank: int
    world_size: int
    local_rank: int


def read_place(environment: Mapping[str, str]) -> Place:
    """torchrun's variables, else those of a Slurm step, else a single process. Raises UserError if some are missing."""
    if "RANK" in environment or "WORLD_SIZE" in environment:
        missing = [name for name in ("RANK", "WORLD_SIZE") if name not in environment]
        if missing:
            raise UserError(f"{missing[0]}: missing from the environment; start with torchrun, Slurm or plain python")
        local_rank = environment.get("LOCAL_RANK", "0")
        return Place(int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(local_rank))
    if "SLURM_PROCID" in environment:
        # Inside a batch script or a shell of salloc, SLURM_NTASKS counts the whole job; a step knows its own tasks.
        tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
        return Place(int(environment["SLURM_PROCID"]), int(tasks), int(environment.get("SLURM_LOCALID", "0")))
    return Place(0, 1, 0)
