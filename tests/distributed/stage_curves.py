"""One stage of the demonstration in several layouts, from one checkpoint: how far the losses are from one process's.

    python tests/distributed/stage_curves.py OUT [--model tiny] [--stage s1] [--steps N] [--layouts NAME ...]

float32 rounds differently in every layout, and training is a chaotic map: two runs that differ in one rounding drift
apart exponentially, whatever caused it. The control shows how fast: one process again, with every weight moved by one
unit in the last place. Writes OUT/curves.json, OUT/curves.png and a table; exit status 1 when a layout is further from
the run on one process than ten times the control before the control itself passes 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LAYOUTS = {
    "DP2": [],
    "TP2": ["parallel.tp=2"],
    "TP2+SP": ["parallel.tp=2", "parallel.sp=true"],
    "PP2": ["parallel.pp=2"],
    "CP2": ["parallel.cp=2"],
    "EP2": ["parallel.ep=2"],
}
QUIET = ["validation.every=0", "log.wandb=disabled", "log.progress=false", "data.workers=0", "checkpoint.every=1000000"]
TOLERANCE = 1e-5
PROGRAM = ["-W", "ignore", "-m", "megatron_qwen3vl"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--stage", default="s1")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--layouts", nargs="*", default=["DP2", "TP2", "PP2", "CP2"])
    options, keys = parser.parse_known_args()  # keys: further overrides of the run
    steps = [] if options.steps is None else [f"stages.{options.stage}.steps={options.steps}"]
    settings = [f"model={options.model}", *QUIET, *steps, *keys]
    seed, moved = start_weights(options.out, settings)
    stage = [*settings, f"run.stages=[{options.stage}]"]
    alone = losses(options.out / "one process", stage, seed, 1)
    curves = {"one process, weights moved by one ulp": losses(options.out / "moved", stage, moved, 1)}
    for name in options.layouts:
        curves[name] = losses(options.out / name, [*stage, *LAYOUTS[name]], seed, 2)
    apart = {name: [abs(a / b - 1) for a, b in zip(own, alone, strict=True)] for name, own in curves.items()}
    (options.out / "curves.json").write_text(json.dumps({"one process": alone, **curves}))
    draw(apart, options.out / "curves.png")
    return report(apart)


def start_weights(out: Path, settings: list[str]) -> tuple[Path, Path]:
    """Two Hugging Face folders: the model after S0, and the same with each weight moved by one ulp."""
    run = out / "s0"
    launch([*settings, "run.stages=[s0]", f"run.dir={run}"], 1)
    seed, moved = out / "seed", out / "seed_moved"
    if not seed.exists():
        (checkpoint,) = (run / "checkpoints" / "s0").glob("step_*")
        subprocess.run([sys.executable, *PROGRAM, "convert", "export", str(checkpoint), str(seed)], check=True)
    moved.mkdir(exist_ok=True)
    for file in seed.iterdir():
        if file.suffix == ".safetensors":
            tensors = {name: tensor.nextafter(torch.tensor(9.0)) for name, tensor in load_file(file).items()}
            save_file(tensors, moved / file.name, {"format": "pt"})
        else:
            (moved / file.name).write_bytes(file.read_bytes())
    return seed, moved


def losses(folder: Path, settings: list[str], weights: Path, processes: int) -> list[float]:
    """Loss of every step; a run that is there already goes on or is read."""
    launch([*settings, f"run.dir={folder}", f"run.init_from={weights}"], processes)
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def launch(settings: list[str], processes: int) -> None:
    quoted = [setting.replace(" ", "\\ ") for setting in settings]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", PROGRAM[-1]]
    command = [sys.executable, *(launcher if processes > 1 else PROGRAM), "pretrain", *quoted]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"})


def draw(apart: dict[str, list[float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, distances in apart.items():
        worst = [max(distances[: step + 1]) for step in range(len(distances))]
        axes.semilogy(range(1, len(worst) + 1), worst, label=name, color="0.6" if "moved" in name else None)
    axes.axhline(TOLERANCE, color="0.8", linewidth=1)
    axes.set(xlabel="step", ylabel="loss: largest relative distance so far from one process")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110)


def report(apart: dict[str, list[float]]) -> int:
    control, *layouts = apart
    passed = [step for step, distance in enumerate(apart[control], start=1) if distance > TOLERANCE]
    known = passed[0] - 1 if passed else len(apart[control])
    bound = 10 * max(apart[control][:known], default=0.0) + 1e-7
    print(f"the control is within {TOLERANCE:g} for {known} of {len(apart[control])} steps")
    wrong = 0
    for name, distances in apart.items():
        until = max(distances[:known], default=0.0)
        marks = {step: max(distances[:step]) for step in (20, 50, 100, 200, 500, 1000) if step <= len(distances)}
        listed = ", ".join(f"{step}: {value:.1e}" for step, value in marks.items())
        wrong += name in layouts and until > bound
        print(f"{name:40} largest distance by step {listed}; all: {max(distances):.1e}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
