"""Memory of one long document on one process: forward, backward and update of ``tiny`` at 8K, 32K and 64K tokens.

    python benchmarks/long_document.py [LENGTH:RECOMPUTE ...]      default 8192:full 32768:full 65536:full

Each length runs in a process of its own; the peak is the resident set's high-water mark, less what the process held
before the step. Attention is quadratic in time, memory is not: nothing of T x T or T x vocabulary is ever held whole.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time


def measure(length: int, recompute: str) -> dict[str, float]:
    """One training step on one document of ``length`` tokens with a picture in it."""
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

    config = load_config([f"parallel.recompute={recompute}", f"parallel.vision_recompute={recompute}"])
    device = start_device()
    join(device)
    groups = start_groups(Layout.from_config(config.parallel, 1), device)
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
        "loss": float(report.document_losses[0]) / (length - 1),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        print(json.dumps(measure(int(arguments[1]), arguments[2])))
        return
    rows = []
    for case in arguments or ["8192:full", "32768:full", "65536:full"]:
        length, recompute = case.split(":")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--one", length, recompute],
            stdout=subprocess.PIPE, text=True, check=True,
        )
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        ratio = row["peak_mb"] / rows[0]["peak_mb"]
        print(
            f"{row['tokens']:>7,} tokens, recompute {recompute}: peak {row['peak_mb']:,.0f} MB above "
            f"{row['base_mb']:,.0f} MB, {ratio:.2f} x the first; "
            f"{row['cpu_seconds']:.0f} CPU s, loss {row['loss']:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
