"""Memory of one long document: forward, backward and update of ``tiny`` at 8K, 32K and 64K tokens, and of each of four
context-parallel ranks at 32K.

    python benchmarks/long_document.py [LENGTH:RECOMPUTE[:CP] ...]

Each case runs in processes of its own; the peak is the resident set's high-water mark, less what the process held
before the step, of the rank where that is most. Attention is quadratic in time, memory is not: nothing of T x T or
T x vocabulary is ever held whole.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time

CASES = ["8192:full", "32768:full", "65536:full", "32768:full:2", "32768:full:4"]


def measure(length: int, recompute: str, cp: int) -> dict[str, float]:
    """This rank's part of one training step on one document of ``length`` tokens with a picture in it."""
    import numpy as np

    from megatron_qwen3vl.batch import Sample, collate
    from megatron_qwen3vl.config.load import load_config
    from megatron_qwen3vl.data.loader import to_pack
    from megatron_qwen3vl.data.positions import mrope_positions
    from megatron_qwen3vl.model.build import build_model
    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import join, shutdown, start_groups
    from megatron_qwen3vl.parallel.layout import Layout
    from megatron_qwen3vl.train.forward import prepare_schedule, run_schedule
    from megatron_qwen3vl.train.optimizer import build_optimizer, step_optimizer

    axes = [f"parallel.recompute={recompute}", f"parallel.vision_recompute={recompute}", f"parallel.cp={cp}"]
    config = load_config(axes)
    device = start_device()
    join(device)
    groups = start_groups(Layout.from_config(config.parallel, cp), device)
    everything = ("vision", "merger", "language")
    chunks = build_model(config.model, config.parallel, groups, "float32", config.loss, everything, seed=1)
    prepare_schedule(chunks)
    optimizer = build_optimizer(chunks, config.stages.s3.optimizer, "float32")

    draw = np.random.default_rng(0)
    ids = draw.integers(0, 1000, length).astype(np.int32)
    visual, grid = np.arange(10, 26, dtype=np.int32), np.array([[1, 8, 8]], np.int32)
    ids[visual] = config.model.image_token_id
    sample = Sample(
        key="long",
        domain="text",
        input_ids=ids,
        labels=np.append(ids[1:], -100).astype(np.int32),
        positions=mrope_positions(length, np.array([10]), grid, 2),
        visual_index=visual,
        grids=grid,
        patches=draw.integers(0, 255, (64, config.model.vision_config.patch_values)).astype(np.uint8),
    )
    batch = collate([to_pack(0, [sample], length, 0)], 0.5, device.device)
    before, began, cpu = _peak(), time.perf_counter(), time.process_time()
    (report,) = run_schedule(chunks, [batch], float(length - 1) ** 0.5, 1).losses
    result = step_optimizer(optimizer, groups)
    assert not result.skipped
    shutdown()
    return {
        "tokens": length,
        "peak_mb": _peak() - before,
        "base_mb": before,
        "loss_sum": float(report.document_losses[0]),  # of the own tokens
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        print(json.dumps(measure(int(arguments[1]), arguments[2], int(arguments[3]))))
        return
    first = None
    for case in arguments or CASES:
        length, recompute, cp = (*case.split(":"), "1")[:3]
        ranks = run_ranks(length, recompute, int(cp))
        worst = max(ranks, key=lambda row: row["peak_mb"])
        first = first or worst["peak_mb"]
        loss = sum(row["loss_sum"] for row in ranks) / (worst["tokens"] - 1)
        print(
            f"{worst['tokens']:>7,} tokens, recompute {recompute}, cp {cp}: peak {worst['peak_mb']:,.0f} MB above "
            f"{worst['base_mb']:,.0f} MB, {worst['peak_mb'] / first:.2f} x the first; "
            f"{sum(row['cpu_seconds'] for row in ranks):.0f} CPU s in all, loss {loss:.4f}",
            flush=True,
        )


def run_ranks(length: str, recompute: str, cp: int) -> list[dict[str, float]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": str(cp), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--one", length, recompute, str(cp)]
    ranks = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(cp)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"{' '.join(command)} failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


if __name__ == "__main__":
    main(sys.argv[1:])
