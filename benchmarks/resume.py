"""G5, its data half: time from a saved position to the first batch, and bytes of the loader's state.

    OMP_NUM_THREADS=1 python benchmarks/resume.py [--repeats 5]     (after launch/data.sh)

The real loader on five built sources, 8,192 tokens a pack, one pack read by this rank of V. Timed: opening the sources
(their index files and catalogues are mapped), decoding the state, planning one pack of all V lanes, reading this rank's
samples here. Imports, model and weights are not in it. Position 5 is planned; further positions are that state with
the counts of turns and tokens that so many more packs of the same mixture take: a lane's state holds nothing else.
The state is written once for all ranks: bytes of the JSON, and that divided by V.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.config.paths import resource
from megatron_qwen3vl.config.schema import SourceConfig
from megatron_qwen3vl.data.loader import Loader, LoaderConfig, PackCost
from megatron_qwen3vl.data.source import Source, open_source
from megatron_qwen3vl.data.tokenizer import load_tokenizer
from megatron_qwen3vl.data.vision import PUBLISHED_LIMITS
from megatron_qwen3vl.data.workers import WorkerLimits

WEIGHTS = {"captions": 0.3, "long_text": 0.2, "long_video": 0.2, "video": 0.2, "text": 0.1}
SEQUENCE_LENGTH, PLANNED = 8192, 10
POSITIONS = (5, 1_000, 1_000_000)  # steps


def open_sources(cache: Path) -> list[Source]:
    config = load_config(["validation.every=0"])
    tokenizer = load_tokenizer(config.tokenizer, config.model)
    return [
        open_source(
            SourceConfig(name, f"{name}/train", weight),
            resource("data_recipes") / "built",
            tokenizer,
            PUBLISHED_LIMITS,
            config.model,
            cache,
            SEQUENCE_LENGTH,
        )
        for name, weight in WEIGHTS.items()
    ]


def settings(lanes: int, reads: bool) -> LoaderConfig:
    return LoaderConfig(
        seed=0,
        stage="s1",
        sequence_length=SEQUENCE_LENGTH,
        global_batch_size=lanes,
        lookahead=4,
        pad_id=0,
        num_ranks=lanes,
        rank=0,
        vision_dp=1,
        workers=0,
        prefetch=0,
        limits=WorkerLimits(timeout_s=300.0, memory_gib=None),
        pixels=reads,
        cost=PackCost(1.0, 1.0, 1.0),
    )


def moved(state: dict[str, Any], steps: int) -> dict[str, Any]:
    """The state ``steps`` packs of every lane later, by counting."""
    later = copy.deepcopy(state)
    for lane in later["lanes"]:
        for place, (source, weight) in enumerate(zip(state["sources"], WEIGHTS.values(), strict=True)):
            tokens = round(steps * SEQUENCE_LENGTH * weight)
            lane["tokens"][place] += tokens
            lane["taken"][place] += round(tokens / source["tokens"] * source["samples"])
    return later


def states(lanes: int, sources: list[Source]) -> dict[int, str]:
    loader = Loader(settings(lanes, reads=False), sources, list(WEIGHTS.values()))
    found = {}
    for number in range(1, PLANNED + 1):
        loader.next()
        if number in POSITIONS:
            found[number] = json.dumps(loader.state())
    last = loader.state()
    return found | {number: json.dumps(moved(last, number - PLANNED)) for number in POSITIONS if number > PLANNED}


def first_batch(cache: Path, lanes: int, text: str) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    loader = Loader(settings(lanes, reads=True), open_sources(cache), list(WEIGHTS.values()), json.loads(text))
    step = loader.next()
    assert len(step.packs) == 1 and not any(document.failure for document in step.packs[0].documents)
    assert not loader.changes
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lanes", type=int, nargs="+", default=[8, 512])
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        sources = open_sources(Path(cache))  # makes the catalogues
        for lanes in given.lanes:
            saved = states(lanes, sources)
            rows = [
                [first_batch(Path(cache), lanes, text) for text in saved.values()] for _ in range(given.repeats)
            ]  # positions take turns
            seconds = np.array(rows)  # [repeats, positions, 2]
            least, middle = seconds.min(axis=0), np.median(seconds, axis=0)
            for place, (position, text) in enumerate(saved.items()):
                print(
                    f"{lanes} lanes, step {position:9,}: first batch after {least[place, 0]:.2f} / "
                    f"{middle[place, 0]:.2f} s, CPU {least[place, 1]:.2f} / {middle[place, 1]:.2f} s; "
                    f"state {len(text):,} bytes, {len(text) / lanes:.0f} a rank"
                )


if __name__ == "__main__":
    main()
