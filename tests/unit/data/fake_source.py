"""A source of made-up samples with data/source.py's interface; every token says which sample it belongs to."""

import os
import signal
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from megatron_qwen3vl.batch import IGNORE, Sample
from megatron_qwen3vl.data.survey import Survey, survey_of


@dataclass(frozen=True)
class FakeSource:
    name: str
    lengths: np.ndarray
    behaviour: dict[int, str] = field(default_factory=dict)  # index -> fail, short, raise, die, sleep, patches, greedy
    slice_size: int = 1

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def patches(self) -> np.ndarray:
        return (np.arange(len(self)) % 3 * 4).astype(np.int32)

    @property
    def damage(self) -> tuple[str, ...]:
        return ()

    def survey(self, sequence_length: int) -> Survey:
        return survey_of(self.lengths, sequence_length)

    def key(self, index: int) -> str:
        return f"{self.name}/shard/{index}"

    def domain(self, index: int) -> str:
        return self.name

    def reason(self, index: int) -> str:
        return "index says it is broken" if self.lengths[index] <= 0 else ""

    def read(self, index: int, pixels: bool) -> Sample:
        behaviour = self.behaviour.get(index, "")
        if behaviour == "raise":
            raise OSError("disk on fire")
        if behaviour == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "sleep":
            time.sleep(1000)
        if behaviour == "greedy":
            np.ones(1 << 30, np.uint8)
        if behaviour == "greedy torch":
            torch.ones(1 << 30, dtype=torch.uint8)
        n = int(self.lengths[index]) - (behaviour == "short")
        images = 0 if behaviour == "fail" else int(self.patches[index]) // 4
        labels = np.full(n, IGNORE, np.int32)
        if behaviour != "fail":
            labels[: n - 1] = index
        num_patches = 4 * images + (behaviour == "patches")
        patches = np.full((num_patches, 30000), index % 251, np.uint8)
        return Sample(
            key=self.key(index),
            domain=self.name,
            input_ids=np.full(n, index, np.int32),
            labels=labels,
            positions=np.tile(np.arange(n, dtype=np.int32), (3, 1)),
            visual_index=np.arange(min(images, n), dtype=np.int32),
            grids=np.tile(np.array([1, 2, 2], np.int32), (images, 1)),
            patches=patches if pixels and behaviour != "fail" else None,
            failure="cannot be decoded" if behaviour == "fail" else None,
        )


def fake_source(name: str, *lengths: int, **behaviour: str) -> FakeSource:
    """``behaviour`` as i7="fail": sample 7 fails."""
    return FakeSource(name, np.array(lengths, np.int32), {int(key[1:]): what for key, what in behaviour.items()})
