"""Reading samples in worker processes.

    submit(number, source, row, length) ->  [worker: Source.read]  -> result(number)

A thread of this process hands tasks to the workers and collects what they send; it holds only what was submitted, so
whoever submits bounds the memory. Which worker reads a sample changes nothing about it. Arrays travel as raw bytes
beside the pickle (protocol 5), through pipes: nothing is left behind in /dev/shm, whoever is killed.

A worker ends when its pipe or its parent does, also when the parent is killed with -9. It ignores the signals that a
cluster sends to a whole job, so that the trainer can finish its step.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import NamedTuple

import numpy as np
import torch

from megatron_qwen3vl.batch import IGNORE, Sample
from megatron_qwen3vl.data.lanes import SampleSource

_IN_FLIGHT = 4  # tasks a worker holds: it need not wait for the next one
_RAW_BYTES = 1 << 16  # larger arrays travel beside the pickle


class ReadError(RuntimeError):
    """Reading a sample ended in an exception or took the worker process with it; a bad sample does neither."""


class Task(NamedTuple):
    number: int
    source: int
    row: int
    length: int
    pixels: bool


def failed_sample(key: str, domain: str, length: int, pad_id: int, failure: str) -> Sample:
    """What stands in the plan for a sample that cannot be used: ``length`` tokens without labels or pictures."""
    return Sample(
        key=key,
        domain=domain,
        input_ids=np.full(length, pad_id, np.int32),
        labels=np.full(length, IGNORE, np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), (3, 1)),
        visual_index=np.zeros(0, np.int32),
        grids=np.zeros((0, 3), np.int32),
        patches=None,
        failure=failure,
    )


def read_planned(source: SampleSource, row: int, length: int, pixels: bool, pad_id: int) -> Sample:
    """A sample that has exactly the planned ``length``, failed if it came otherwise. Raises ReadError."""
    try:
        sample = source.read(row, pixels)
    except Exception as error:
        raise ReadError(f"sample {source.key(row)}: {type(error).__name__}: {error}") from error
    if sample.failure is None and pixels and sample.patches is not None:
        expected = int(sample.grids.prod(axis=1).sum())
        if len(sample.patches) != expected:
            why = f"{len(sample.patches)} patches, its grids have {expected}"
            return failed_sample(sample.key, sample.domain, length, pad_id, why)
    if len(sample.input_ids) != length:
        why = sample.failure or f"{len(sample.input_ids)} tokens, the index says {length}"
        return failed_sample(sample.key, sample.domain, length, pad_id, why)
    return sample


class ReaderPool:
    """``num_workers`` processes that read samples of ``sources``. Sources travel to them by pickle, once."""

    def __init__(self, sources: Sequence[SampleSource], num_workers: int, pad_id: int) -> None:
        self._sources = list(sources)
        self._lock = threading.Condition()
        self._todo: deque[Task] = deque()
        self._results: dict[int, Sample | ReadError] = {}
        self._closed = False
        # the server imports once what every worker needs, workers are forked from it
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, *sorted({type(source).__module__ for source in sources})])
        self._doing: dict[Connection, deque[Task]] = {}
        self._processes: dict[Connection, ForkServerProcess] = {}
        for number in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, self._sources, pad_id), name=f"reader-{number}", daemon=True
            )
            process.start()
            theirs.close()
            self._doing[ours], self._processes[ours] = deque(), process
        self._wake_reader, self._wake_writer = context.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._collect, name="reader-pool", daemon=True)
        self._thread.start()

    def process_ids(self) -> list[int]:
        return [process.pid for process in self._processes.values() if process.pid is not None]

    def submit(self, task: Task) -> None:
        with self._lock:
            self._todo.append(task)
            self._hand_out()

    def result(self, number: int) -> Sample:
        """Waits for the sample of a submitted task. Raises ReadError, as reading in this process would."""
        with self._lock:
            self._lock.wait_for(lambda: number in self._results)
            result = self._results.pop(number)
        if isinstance(result, ReadError):
            raise result
        return result

    def close(self) -> None:
        """Ends the workers. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wake_writer.send(None)
        self._thread.join()
        for connection, process in self._processes.items():
            connection.close()
            process.join(timeout=1)
            if process.exitcode is None:  # in the middle of a long read
                process.kill()
                process.join()
        self._wake_reader.close()
        self._wake_writer.close()

    def _hand_out(self) -> None:
        """Give tasks to the workers that hold fewest. Called with the lock held."""
        while self._todo and self._doing:
            connection = min(self._doing, key=lambda connection: len(self._doing[connection]))
            if len(self._doing[connection]) >= _IN_FLIGHT:
                return
            task = self._todo.popleft()
            self._doing[connection].append(task)
            # a dead worker: the collecting thread finds out and says which sample it was reading
            with suppress(OSError):
                connection.send(task)
        if self._todo and not self._doing:
            for task in self._todo:
                self._results[task.number] = ReadError("no worker process is left to read samples")
            self._todo.clear()
            self._lock.notify_all()

    def _collect(self) -> None:
        while True:
            with self._lock:
                connections = list(self._doing)
            for connection in wait([*connections, self._wake_reader]):
                if connection is self._wake_reader:
                    return
                assert isinstance(connection, Connection)
                try:
                    result = _receive(connection)
                except Exception:  # the pipe closed, or broke off within a sample
                    self._bury(connection)
                    continue
                with self._lock:
                    self._results[self._doing[connection].popleft().number] = result
                    self._hand_out()
                    self._lock.notify_all()

    def _bury(self, connection: Connection) -> None:
        """A worker died: the sample it was reading is the first it held; the others go to the rest."""
        process = self._processes[connection]
        process.join(timeout=5)
        if process.exitcode is None:
            process.kill()
            process.join()
        with self._lock:
            held = self._doing.pop(connection)
            if held:
                task = held.popleft()
                key = self._sources[task.source].key(task.row)
                self._results[task.number] = ReadError(
                    f"sample {key}: the worker process reading it died (exit status {process.exitcode}); "
                    "memory may have run out, or a library crashed on this sample"
                )
            self._todo.extendleft(reversed(held))
            self._hand_out()
            self._lock.notify_all()


def _work(connection: Connection, sources: list[SampleSource], pad_id: int) -> None:
    """A worker's life: read tasks in order until the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        while True:
            task = connection.recv()
            try:
                result: Sample | ReadError = read_planned(
                    sources[task.source], task.row, task.length, task.pixels, pad_id
                )
            except ReadError as error:
                result = ReadError(f"{error}\n{traceback.format_exc()}")
            _send(connection, result)
    except (EOFError, OSError):
        return  # the other end is closed


def _follow_parent() -> None:
    """Also a worker in the middle of a long read must not outlive the trainer."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _send(connection: Connection, result: Sample | ReadError) -> None:
    raw: list[memoryview] = []

    def beside(buffer: pickle.PickleBuffer) -> bool:
        """True keeps the bytes inside the pickle."""
        view = buffer.raw()
        if view.nbytes < _RAW_BYTES:
            return True
        raw.append(view)
        return False

    data = pickle.dumps(result, protocol=5, buffer_callback=beside)
    connection.send(([view.nbytes for view in raw], data))
    for view in raw:
        connection.send_bytes(view)


def _receive(connection: Connection) -> Sample | ReadError:
    sizes, data = connection.recv()
    buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        connection.recv_bytes_into(buffer)
    return pickle.loads(data, buffers=buffers)
