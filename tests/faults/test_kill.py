"""kill -9 at random moments changes nothing: metrics, samples and final weights equal an uninterrupted run's exactly.

The moments are found by watching the disk, never by hooks in the program: inside a save (its temporary folder exists),
at a hand-over (a stage's last step is in metrics.jsonl), and at random times in between. MQ3_KILLS sets how many.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from faults_data import OVERRIDES, STEPS, WALL_CLOCK, make_mixture

KILLS = int(os.environ.get("MQ3_KILLS", "6"))


def _train(overrides: list[str]) -> None:
    from megatron_qwen3vl.config.load import load_config
    from megatron_qwen3vl.train.pretrain import pretrain

    os.setpgrp()  # so that its workers are killed with it, as a machine that dies takes them
    pretrain(load_config(overrides))


@pytest.fixture(scope="module")
def context() -> multiprocessing.context.BaseContext:
    fork_server = multiprocessing.get_context("forkserver")
    fork_server.set_forkserver_preload(["megatron_qwen3vl.train.pretrain", "megatron_qwen3vl.config.load"])
    return fork_server


def _rows(run: Path, name: str) -> list[dict]:
    path = run / name
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _steps(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in _rows(run, "metrics.jsonl")]


def _write_digests(folder: Path, out: Path) -> None:
    """The sha256 of every tensor of a checkpoint (weights, masters, moments), by name."""
    from megatron.core import dist_checkpointing

    from megatron_qwen3vl.parallel.device import start_device
    from megatron_qwen3vl.parallel.groups import join, shutdown

    join(start_device())
    tree = dist_checkpointing.load_plain_tensors(str(folder / "tensors"))
    out.write_text(json.dumps(dict(_digest("", tree))))
    shutdown()


def _digest(name: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _digest(f"{name}/{key}", inner)
    elif isinstance(value, torch.Tensor):
        yield name, hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    else:
        yield name, repr(value)


def _digests(context: multiprocessing.context.BaseContext, run: Path) -> dict[str, str]:
    folder = run / "checkpoints" / "s3" / f"step_{STEPS:08d}"
    process = context.Process(target=_write_digests, args=(folder, run / "digests.json"))
    process.start()
    process.join()
    return json.loads((run / "digests.json").read_text())


def _unfinished(run: Path) -> set[int]:
    """Temporary folders of saves, by inode: what an earlier kill left behind is not taken for a save under way."""
    found = set()
    for path in (run / "checkpoints").glob("*/.step_*"):
        with contextlib.suppress(FileNotFoundError):
            found.add(path.stat().st_ino)
    return found


def _at_a_hand_over(run: Path, before: int) -> bool:
    steps = _rows(run, "metrics.jsonl")
    return len(steps) > before and steps[-1]["step"] == STEPS and steps[-1]["stage"] != "s3"


def _has_stepped(run: Path, before: int) -> bool:
    return len(_rows(run, "metrics.jsonl")) > before


def _kill_when(
    context: multiprocessing.context.BaseContext, run: Path, ready: Callable[[], bool], delay: float
) -> bool:
    """Start the run, kill it ``delay`` seconds after ``ready``; False when it came to its end before that."""
    process = context.Process(target=_train, args=([*OVERRIDES, f"run.dir={run}"],))
    process.start()
    while process.is_alive() and not ready():
        time.sleep(0.002)
    process.join(delay)
    alive = process.is_alive()
    if alive:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # so early that it has no group of its own yet
            process.kill()
    process.join()
    assert alive or process.exitcode == 0, "the run failed by itself"
    return alive


def test_killed_runs_equal_an_uninterrupted_one(
    tmp_path: Path, context: multiprocessing.context.BaseContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = int(os.environ.get("MQ3_SEED", time.time_ns() % 10**9))
    print(f"MQ3_SEED={seed}")
    draw = random.Random(seed)
    mixture = make_mixture(tmp_path)
    OVERRIDES[:] = [o for o in OVERRIDES if "mixture" not in o] + [f"stages.s{i}.mixture={mixture}" for i in range(4)]

    whole = tmp_path / "whole"
    process = context.Process(target=_train, args=([*OVERRIDES, f"run.dir={whole}"],))
    process.start()
    process.join()
    assert process.exitcode == 0

    run, inside, hand_overs, kills = tmp_path / "killed", 0, 0, 0
    while kills < KILLS:
        before = len(_rows(run, "metrics.jsonl"))
        if inside < 2:
            left = _unfinished(run)
            begun = lambda a=left: bool(_unfinished(run) - a)  # noqa: E731
            killed = _kill_when(context, run, begun, draw.uniform(0.0, 0.05))
            inside += killed and begun()  # the run may have been quick enough to finish the save
        elif hand_overs < 2:
            hand_overs += _kill_when(context, run, lambda b=before: _at_a_hand_over(run, b), draw.uniform(0.0, 0.8))
        else:
            stepped = partial(_has_stepped, run, before)
            if not _kill_when(context, run, stepped, draw.uniform(0.0, 0.3)):
                break
        kills += 1
    process = context.Process(target=_train, args=([*OVERRIDES, f"run.dir={run}"],))
    process.start()
    process.join()
    assert process.exitcode == 0
    print(f"{kills} kills, {inside} inside a save, {hand_overs} at a hand-over")
    assert inside >= 2 and hand_overs >= 2
    assert _steps(run) == _steps(whole)
    assert _rows(run, "samples.jsonl") == _rows(whole, "samples.jsonl")
    digests = _digests(context, run)
    assert len(digests) > 100 and digests == _digests(context, whole)
