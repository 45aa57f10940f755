"""G5: what a save costs a step, and how long a resume takes to its first batch.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_stall.py [--length 1024] [--repeats 5]
    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 benchmarks/checkpoint_stall.py

The trainer's own StageRun with the model of step_vs_transformers.py, one process or several under data parallelism,
two packs of ``length`` positions a step. Each turn: a step; an asynchronous save; a step while it is written; a
synchronous save. The stall is the time that ``StageRun.save`` keeps the loop (and the two agreements at later steps),
in wall seconds and in CPU seconds of that thread. What the writing thread takes from a step in its shadow shows in
that step's wall seconds where cores are scarce.

Resume: a new loader with a saved state, to its first batch (samples from memory, so that decoding does not count).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from framework_overhead import Memory, stage_run
from step_vs_transformers import PLAIN

from megatron_qwen3vl.data.loader import Loader
from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import Groups, broadcast_object, shutdown, start_groups, world_size
from megatron_qwen3vl.parallel.layout import Layout
from megatron_qwen3vl.train.trainer import StageRun

POSITIONS = (5, 200, 2000)  # steps


def timed(act: Callable[[], object]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this thread)."""
    wall, cpu = time.perf_counter(), time.thread_time()
    act()
    return time.perf_counter() - wall, time.thread_time() - cpu


def measure_stall(run: StageRun, repeats: int) -> dict[str, np.ndarray]:
    """Name -> [repeats, 2] seconds."""
    names = ("step", "asynchronous", "shadow", "synchronous")
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in names}

    def wait() -> None:
        run.save()
        run.saver.wait()

    for turn in range(repeats + 1):  # the first makes the memory that later ones use again
        measured = {"step": timed(run.step), "asynchronous": timed(run.save), "shadow": timed(run.step)}
        run.saver.wait()
        run.step()
        measured["synchronous"] = timed(wait)
        if turn:
            for name, seconds in measured.items():
                rows[name].append(seconds)
    return {name: np.array(values) for name, values in rows.items()}


def measure_resume(loader: Loader, repeats: int) -> list[tuple[int, int, float]]:
    """(position in steps, bytes of the state, least seconds from the state to the first batch)."""
    config, found = loader._config, []
    sources = [Memory(400, config.sequence_length)]
    walker = Loader(dataclasses.replace(config, pixels=False), sources, [1.0])
    for number in range(1, max(POSITIONS) + 1):
        walker.next()
        if number in POSITIONS:
            text = json.dumps(walker.state())
            state = json.loads(text)
            taken = [timed(lambda state=state: Loader(config, sources, [1.0], state).next())[0] for _ in range(repeats)]
            found.append((number, len(text), min(taken)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    groups: Groups = start_groups(Layout.from_config(PLAIN, world_size()), start_device("cpu"))
    with tempfile.TemporaryDirectory() as own:
        run, loader = stage_run(Path(broadcast_object(own)), groups, arguments.length)
        table = measure_stall(run, arguments.repeats)
        resumes = measure_resume(loader, arguments.repeats)
        run.saver.close()
    if groups.is_writer:
        show(run, table, resumes)
    shutdown()


def show(run: StageRun, table: dict[str, np.ndarray], resumes: list[tuple[int, int, float]]) -> None:
    own = sum(p.numel() for chunk in run.parts.chunks for p in chunk.parameters())
    print(f"{run.groups.world_size} processes, {own / 1e6:.1f} million parameters on each; seconds minimum / median")
    step = table["step"]
    for name, seconds in table.items():
        least, middle = seconds.min(axis=0), np.median(seconds, axis=0)
        share = f"{least[1] / step[:, 1].min():.1%} / {middle[1] / np.median(step[:, 1]):.1%} of a step's CPU seconds"
        print(f"  {name:13} wall {least[0]:.3f} / {middle[0]:.3f}, CPU {least[1]:.3f} / {middle[1]:.3f}: {share}")
    for position, size, seconds in resumes:
        print(f"  resume at step {position}: state {size} bytes, first batch after {seconds * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
