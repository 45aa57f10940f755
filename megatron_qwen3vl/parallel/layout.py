"""How processes are divided among the axes of the parallel grid. Pure integers."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_qwen3vl.config.schema import ParallelConfig


@dataclass(frozen=True)
class Layout:
    """Sizes of the axes; ``vpp`` 1 is a plain pipeline, ``etp`` is the tensor axis inside experts."""

    world_size: int
    tp: int
    pp: int
    vpp: int
    cp: int
    ep: int
    etp: int
    sp: bool

    @classmethod
    def from_config(cls, parallel: ParallelConfig, world_size: int) -> Layout:
        return cls(
            world_size=world_size,
            tp=parallel.tp,
            pp=parallel.pp,
            vpp=parallel.vpp,
            cp=parallel.cp,
            ep=parallel.ep,
            etp=parallel.etp,
            sp=parallel.sp,
        )

    @property
    def dp(self) -> int:
        """Data-parallel size: what is left of the world size."""
        return self.world_size // (self.tp * self.pp * self.cp)
