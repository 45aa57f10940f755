"""A run that is killed and goes on with other numbers of processes and data workers, over a network with faults, uses
exactly the samples of an uninterrupted one from the disk: same order, each once.

(processes, workers) = (1, 0) (2, 2) (4, 1) (2, 3) (1, 4). Between them kill -9: in the middle of a step, of a save,
with packs read ahead, and of one process of several. In the last start one worker is killed and one stopped.
MQ3_ELASTIC_STEPS makes the run longer, MQ3_SEED fixes the moments and the faults.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
from elastic_data import NAMES, SEQUENCE_LENGTH, make_shards, write_mixture
from faults_data import OVERRIDES
from faulty_server import FaultyServer

STEPS = int(os.environ.get("MQ3_ELASTIC_STEPS", "20"))
EVERY = 3  # steps between two saves
LANES = 4
SIZES = ((1, 0), (2, 2), (4, 1), (2, 3), (1, 4))
FAULTS = {"error": 0.05, "unavailable": 0.02, "short": 0.05, "cut": 0.04, "reset": 0.05, "stall": 0.03}


def _train(overrides: list[str], rank: int, processes: int, port: int) -> None:
    from megatron_qwen3vl.config.load import load_config
    from megatron_qwen3vl.train.pretrain import pretrain

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    pretrain(load_config(overrides))


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    fork_server = multiprocessing.get_context("forkserver")
    fork_server.set_forkserver_preload(["megatron_qwen3vl.train.pretrain", "megatron_qwen3vl.config.load"])
    return fork_server


class Job:
    """The processes of one start, as a launcher has them."""

    def __init__(self, context: ForkServerContext, run: Path, mixture: Path, processes: int, workers: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        overrides = [
            *(line for line in OVERRIDES if "stages." not in line and "checkpoint." not in line),
            "run.stages=[s1]",
            f"run.dir={run}",
            f"stages.s1.mixture={mixture}",
            f"stages.s1.steps={STEPS}",
            "stages.s1.tokens=null",
            f"stages.s1.sequence_length={SEQUENCE_LENGTH}",
            f"stages.s1.global_batch_size={LANES}",
            "stages.s1.micro_batch_size=1",
            f"checkpoint.every={EVERY}",
            f"data.workers={workers}",
            "data.sample_timeout=20",
            "storage.backoff_s=0.01",
            "storage.timeout_s=1",
        ]
        self._processes: list[ForkServerProcess] = []
        for rank in range(processes):
            process = context.Process(target=_train, args=(overrides, rank, processes, port))
            process.start()
            self._processes.append(process)

    @property
    def runs(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def workers(self) -> set[int]:
        """Processes that read data: each rank has a server that starts them."""
        ranks = [process.pid for process in self._processes if process.pid is not None]
        return {worker for rank in ranks for server in _children(rank) for worker in _children(server)}

    def kill(self, first: int | None = None) -> None:
        """-9; with ``first`` that process a moment before the others, which then wait for it in vain."""
        if first is not None:
            self._processes[first].kill()
            time.sleep(0.1)
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def wait(self) -> list[int | None]:
        for process in self._processes:
            process.join()
        return [process.exitcode for process in self._processes]


def _children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def _rows(run: Path, name: str) -> list[dict]:
    path = run / name
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(line) for line in whole.splitlines()]


def _saves_under_way(run: Path) -> set[int]:
    found = set()
    for path in (run / "checkpoints").glob("*/.step_*"):
        with contextlib.suppress(FileNotFoundError):
            found.add(path.stat().st_ino)
    return found


def _last_save(run: Path) -> int:
    return max((int(path.name[5:]) for path in (run / "checkpoints/s1").glob("step_*")), default=0)


def _kill_on_the_way(start: Callable[[int, int], Job], run: Path, draw: random.Random) -> list[str]:
    """The first four starts, each ended by a kill; what was under way each time."""
    moments = []
    for number, (processes, workers) in enumerate(SIZES[:-1]):
        left, saved, before = _saves_under_way(run), _last_save(run), len(_rows(run, "metrics.jsonl"))
        job = start(processes, workers)
        reached = saved + max(EVERY + 1, STEPS // 6)  # a save of its own, and at least a step that is made again
        while job.runs and not (
            _last_save(run) > saved and _saves_under_way(run) - left
            if number == 1
            else _last_save(run) > saved and len(_rows(run, "metrics.jsonl")) >= reached
        ):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.02 if number == 1 else 0.3))
        assert job.runs, f"the run on {processes} processes ended by itself: {job.wait()}"
        saving = bool(_saves_under_way(run) - left)
        job.kill(first=1 if processes == 2 and number == 3 else None)
        done = len(_rows(run, "metrics.jsonl"))
        moments.append(f"{processes} x {workers}: from {saved}, {before} lines, to {done}, saving {saving}")
        assert done < STEPS
    return moments


def _check_uses(rows: list[dict]) -> None:
    """No reference needed: every source's samples are used about equally often, a book's parts and books only once."""
    uses = Counter(key for row in rows for key in row["keys"])
    assert {key.split("/")[0] for key in uses} == set(NAMES)
    books = [count for key, count in uses.items() if key.startswith("books/")]
    assert set(books) == {1}
    assert any("#" in key for key in uses), "no book was long enough to be split"
    for name in NAMES[:-1]:
        counts = [count for key, count in uses.items() if key.startswith(f"{name}/")]
        assert max(counts) - min(counts) <= 2, name  # those that still wait have not been used


def _harm_workers(job: Job, run: Path) -> None:
    """-9 for one worker and a stop for another, in the middle of the run; the job ends well all the same."""
    before = len(_rows(run, "metrics.jsonl"))
    while job.runs and len(_rows(run, "metrics.jsonl")) <= before:
        time.sleep(0.01)
    killed, stopped, *others = sorted(job.workers())
    assert len(others) == 2
    os.kill(killed, signal.SIGKILL)
    os.kill(stopped, signal.SIGSTOP)
    assert job.wait() == [0]
    assert not Path(f"/proc/{stopped}").exists()


def test_other_processes_and_workers_use_the_same_samples(tmp_path: Path, context: ForkServerContext) -> None:
    seed = int(os.environ.get("MQ3_SEED", time.time_ns() % 10**9))
    print(f"MQ3_SEED={seed}")
    shards, whole, run = tmp_path / "shards", tmp_path / "whole", tmp_path / "run"
    make_shards(shards, books=STEPS * 9 // 2)
    near = write_mixture(tmp_path / "near.yaml", str(shards))
    assert Job(context, whole, near, 1, 0).wait() == [0]

    with FaultyServer(shards, FAULTS, seed, stall_s=3.0) as server:
        far = write_mixture(tmp_path / "far.yaml", server.address)
        moments = _kill_on_the_way(lambda *size: Job(context, run, far, *size), run, random.Random(seed))
        print("\n".join(moments))
        _harm_workers(Job(context, run, far, *SIZES[-1]), run)
        met = Counter(request.fault for request in server.requests)
    print(met)
    assert min(met[fault] for fault in FAULTS) >= len(SIZES)

    assert (run / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    _check_uses(_rows(run, "samples.jsonl"))
    ours, theirs = _rows(run, "metrics.jsonl"), _rows(whole, "metrics.jsonl")
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-4)
    assert not _rows(run, "quarantine.jsonl") and not _rows(run, "skipped.jsonl")
