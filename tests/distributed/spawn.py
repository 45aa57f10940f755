"""Run a function on several gloo processes of this machine.

The processes fork from a server that has already imported torch and megatron-core, once per test session, so that a
start costs a fraction of a second. They find the function by its file and name: it must stand at a module's top level.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import queue
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.queues import Queue
from typing import Any

PRELOAD = ["megatron_qwen3vl.parallel.groups", "megatron_qwen3vl.train.saving", "megatron_qwen3vl.train.optimizer"]


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any, timeout: float = 300.0) -> list[Any]:
    """``function(*arguments)`` in ``world_size`` processes with a launcher's environment; their results by rank.

    Arguments and results must pickle. Raises AssertionError with a rank's traceback when one fails, or when they take
    longer than ``timeout`` seconds; the others are then ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    answers: Queue = context.Queue()
    job = (inspect.getfile(function), function.__qualname__, pickle.dumps(arguments))
    port = _free_port()
    processes = [
        context.Process(target=_rank, args=(rank, world_size, port, job, answers), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        return _collect(processes, answers, timeout)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _collect(processes: list[Any], answers: Queue, timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(results) < len(processes):
        try:
            rank, failure, payload = answers.get(timeout=1.0)
        except queue.Empty:
            dead = [i for i, p in enumerate(processes) if p.exitcode not in (None, 0) and i not in results]
            assert not dead, f"ranks {dead} died: exit status {[processes[i].exitcode for i in dead]}"
            assert time.monotonic() < deadline, f"only ranks {sorted(results)} answered within {timeout} s"
            continue
        assert failure is None, f"rank {rank} failed{_killed(processes)}:\n{failure}"
        results[rank] = pickle.loads(payload)
    return [results[rank] for rank in range(len(processes))]


def _killed(processes: list[Any]) -> str:
    """A rank that a signal ended says nothing itself; its peers only lose their connection."""
    for process in processes:
        process.join(timeout=0.5)
    ended = [f"rank {i} by signal {-p.exitcode}" for i, p in enumerate(processes) if (p.exitcode or 0) < 0]
    return f" (ended before: {', '.join(ended)})" if ended else ""


def _rank(rank: int, world_size: int, port: int, job: tuple[str, str, bytes], answers: Queue) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    import torch

    from megatron_qwen3vl.parallel.groups import shutdown

    faulthandler.enable()  # a crash in a library shows where it was called from
    torch.set_num_threads(1)
    file, name, arguments = job
    try:
        result = getattr(_load(file), name)(*pickle.loads(arguments))
        answers.put((rank, None, pickle.dumps(result)))
        shutdown()
    except BaseException:
        answers.put((rank, traceback.format_exc(), b""))
        raise


def _load(file: str) -> Any:
    name = f"_spawned_{os.path.basename(file).removesuffix('.py')}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
