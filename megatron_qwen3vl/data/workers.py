"""Reading samples in worker processes.

    submit(number, source, row, length) ->  [worker: Source.read]  -> result(number)

A thread of this process hands tasks to the workers and collects what they send; it holds only what was submitted, so
whoever submits bounds the memory. Which worker reads a sample changes nothing about it. Arrays travel as raw bytes
through pipes: nothing is left behind in /dev/shm, whoever is killed.

A worker that dies, or takes longer over a sample than it may, is replaced at its place. The sample that it was reading
is read once more, by the new one, before anything else; if that ends alike it is a failed sample. So what becomes of a
sample is what becomes of it in a fresh process, and depends on no other.

A worker ends when its pipe or its parent does, also when the parent is killed with -9. It ignores the signals that a
cluster sends to a whole job, so that the trainer can finish its step.
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.util import Finalize
from typing import NamedTuple

import numpy as np

from megatron_qwen3vl.batch import IGNORE, Sample
from megatron_qwen3vl.data.lanes import SampleSource
from megatron_qwen3vl.data.worker_process import (
    OUT_OF_MEMORY,
    Inbox,
    Message,
    ReadError,
    is_out_of_memory,
    run_worker,
)
from megatron_qwen3vl.errors import UserError

__all__ = ["ReadError", "ReaderPool", "Task", "WorkerLimits", "failed_sample", "read_planned"]

_IN_FLIGHT = 4  # tasks a worker holds: it need not wait for the next one
_TICK_S = 0.5  # how often the time that samples take is looked at
_START_S = 120.0  # a worker that has not said that it is ready by then never will
_STARTS = 5  # tries in a row to start a process
_GIB = 1 << 30


class Task(NamedTuple):
    number: int
    source: int
    row: int
    length: int
    pixels: bool


class WorkerLimits(NamedTuple):
    """``timeout_s`` for one sample; ``memory_gib`` that a worker may take beside what it began with, None: no limit."""

    timeout_s: float
    memory_gib: float | None


class Cause(NamedTuple):
    """Why a worker is no more, as the reason of a failed sample says it."""

    what: str
    detail: str


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
    """A sample that has exactly the planned ``length``, failed if it came otherwise. Raises ReadError, MemoryError."""
    try:
        sample = source.read(row, pixels)
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(f"sample {_name_of(source, row)}: {error}") from error
        raise ReadError(f"sample {_name_of(source, row)}: {type(error).__name__}: {error}") from error
    if sample.failure is None and pixels and sample.patches is not None:
        expected = int(sample.grids.prod(axis=1).sum())
        if len(sample.patches) != expected:
            why = f"{len(sample.patches)} patches, its grids have {expected}"
            return failed_sample(sample.key, sample.domain, length, pad_id, why)
    if len(sample.input_ids) != length:
        why = sample.failure or f"{len(sample.input_ids)} tokens, the index says {length}"
        return failed_sample(sample.key, sample.domain, length, pad_id, why)
    return sample


def _name_of(source: SampleSource, row: int) -> str:
    """Its key, or its number where what went wrong is the index that has the keys."""
    try:
        return source.key(row)
    except Exception:
        return f"{row} of {source.name}"


@dataclass(frozen=True)
class _Reading:
    """What a worker does with a task. Travels to it by pickle, once."""

    sources: tuple[SampleSource, ...]
    pad_id: int

    def __call__(self, task: Task) -> Sample:
        return read_planned(self.sources[task.source], task.row, task.length, task.pixels, self.pad_id)


@dataclass(eq=False)
class _Worker:
    place: int
    process: ForkServerProcess
    connection: Connection
    started: float  # on the pool's clock
    doing: deque[Task]  # the first is the one being read
    ready: bool = False
    began: float | None = None  # when it could begin with the first, on the pool's clock
    inbox: Inbox = field(default_factory=Inbox)


class ReaderPool:
    """``num_workers`` processes that read samples of ``sources``. Sources travel to them by pickle, once.

    Raises UserError where no process can be started.
    """

    def __init__(self, sources: Sequence[SampleSource], num_workers: int, pad_id: int, limits: WorkerLimits) -> None:
        self._reading = _Reading(tuple(sources), pad_id)
        self._limits = limits
        self._lock = threading.Condition()
        self._todo: deque[Task] = deque()
        self._results: dict[int, Sample | ReadError] = {}
        self._strikes: dict[int, Cause] = {}  # tasks that have taken one worker with them
        self._deaths = 0  # since the last sample was read
        self._most_deaths = 3 * num_workers + 9
        self._broken: ReadError | None = None
        self._closed = False
        self._clock = 0.0  # seconds in which the workers could run: not those in which all of the job stood still
        # the server imports once what every worker needs, workers are forked from it
        self._context = multiprocessing.get_context("forkserver")
        modules = sorted({type(source).__module__ for source in sources})
        self._context.set_forkserver_preload([__name__, *modules])
        self._workers: list[_Worker] = []
        try:
            for place in range(num_workers):
                self._workers.append(self._start(place))
        except (OSError, EOFError) as error:
            for worker in self._workers:
                _end(worker.process)
            raise UserError(f"data.workers={num_workers}: no process can be started ({error}); lower it") from None
        self._vacant: deque[tuple[int, Task | None]] = deque()  # places without a worker, and what each begins with
        self._failed_starts = 0
        self._wake_reader, self._wake_writer = self._context.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._work, name="reader-pool", daemon=True)
        self._thread.start()
        # where nobody closed it, because something else failed, Python would wait for the workers for ever at its end
        self._at_exit = Finalize(None, self.close, exitpriority=0)

    def process_ids(self) -> list[int]:
        with self._lock:
            return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def submit(self, task: Task) -> None:
        with self._lock:
            self._todo.append(task)
            self._hand_out()

    def result(self, number: int) -> Sample:
        """Waits for the sample of a submitted task.

        Raises ReadError where reading raised an exception, or where no worker can be kept alive.
        """
        with self._lock:
            self._lock.wait_for(lambda: number in self._results or self._broken is not None)
            if number not in self._results:
                assert self._broken is not None
                raise self._broken
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
        self._at_exit.cancel()
        self._thread.join()
        for worker in self._workers:
            worker.connection.close()
        deadline = time.monotonic() + 1
        for worker in self._workers:
            worker.process.join(timeout=max(0.0, deadline - time.monotonic()))
            _end(worker.process)  # it may be in the middle of a long read
        self._wake_reader.close()
        self._wake_writer.close()

    def _start(self, place: int, first: Task | None = None) -> _Worker:
        """Raises OSError or EOFError where the machine gives no process."""
        ours, theirs = self._context.Pipe()
        memory = self._limits.memory_gib
        arguments = (theirs, self._reading, None if memory is None else int(memory * _GIB))
        process = self._context.Process(target=run_worker, args=arguments, name=f"reader-{place}", daemon=True)
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = _Worker(place, process, ours, self._clock, deque())
        if first is not None:
            self._give(worker, first)
        return worker

    def _give(self, worker: _Worker, task: Task) -> None:
        if worker.ready and not worker.doing:
            worker.began = self._clock
        worker.doing.append(task)
        with suppress(OSError):  # a dead worker: the collecting thread finds out
            worker.connection.send(task)

    def _hand_out(self) -> None:
        """Give tasks to the workers that hold fewest. Called with the lock held."""
        while self._todo and self._workers:
            worker = min(self._workers, key=lambda worker: len(worker.doing))
            if len(worker.doing) >= _IN_FLIGHT:
                return
            self._give(worker, self._todo.popleft())

    def _work(self) -> None:
        try:
            self._collect()
        except Exception as error:  # nobody else would ever wake who waits for a result
            with self._lock:
                self._break("".join(traceback.format_exception(error)).strip())
                self._lock.notify_all()

    def _collect(self) -> None:
        before = time.monotonic()
        while True:
            with self._lock:
                by_connection = {worker.connection: worker for worker in self._workers}
            for connection in wait([*by_connection, self._wake_reader], timeout=_TICK_S):
                if connection is self._wake_reader:
                    return
                assert isinstance(connection, Connection)
                self._receive(by_connection[connection])
            now = time.monotonic()
            self._clock += min(now - before, 2 * _TICK_S)
            before = now
            for worker in by_connection.values():
                cause = self._overdue(worker)
                if cause is not None and worker in self._workers:
                    self._bury(worker, cause)
            self._fill_places()

    def _receive(self, worker: _Worker) -> None:
        try:
            message = worker.inbox.read(worker.connection)
        except Exception:  # the pipe closed, or what came is no message
            self._bury(worker, None)
            return
        if message is not None:
            with self._lock:
                self._take(worker, message)
                self._hand_out()
                self._lock.notify_all()

    def _take(self, worker: _Worker, message: Message) -> None:
        if isinstance(message, str):
            worker.ready = True
        else:
            number = worker.doing.popleft().number
            self._results[number] = message
            self._strikes.pop(number, None)
            self._deaths = 0
        worker.began = self._clock if worker.doing else None

    def _overdue(self, worker: _Worker) -> Cause | None:
        if not worker.ready:
            late = self._clock - worker.started > _START_S + self._limits.timeout_s
            return Cause("the process to read it did not begin", f"{_START_S:g} s") if late else None
        if worker.began is None or self._clock - worker.began <= self._limits.timeout_s + _TICK_S:
            return None
        return Cause("took longer than data.sample_timeout", f"{self._limits.timeout_s:g} s")

    def _bury(self, worker: _Worker, cause: Cause | None) -> None:
        """A worker is no more, or shall be no more: the sample it was reading has one more try, in the next one."""
        if cause is None:
            worker.process.join(timeout=5)
        _end(worker.process)
        if cause is None and worker.process.exitcode == OUT_OF_MEMORY:
            cause = Cause("took more memory than data.worker_memory", f"{self._limits.memory_gib:g} GiB")
        cause = cause or Cause("the process reading it died", f"exit status {worker.process.exitcode}")
        with self._lock:
            worker.connection.close()
            self._workers.remove(worker)
            again = self._judge(worker.doing.popleft(), cause) if worker.doing else None
            self._vacant.append((worker.place, again))
            self._todo.extendleft(reversed(worker.doing))
            self._deaths += 1
            if self._deaths >= self._most_deaths:
                self._break(
                    f"{self._deaths} reading processes in a row ended before one sample was read; the last: "
                    f"{cause.what} ({cause.detail}); memory may have run out: lower data.workers or data.prefetch"
                )
            self._hand_out()
            self._lock.notify_all()

    def _judge(self, task: Task, cause: Cause) -> Task | None:
        """The task if it is to be tried once more; else its result is a failed sample."""
        source = self._reading.sources[task.source]
        key = source.key(task.row)
        if task.number not in self._strikes:
            self._strikes[task.number] = cause
            logging.getLogger(__name__).warning("sample %s: %s (%s); it is read once more", key, *cause)
            return task
        first = self._strikes.pop(task.number)
        if first.what == cause.what:
            why = f"{cause.what} twice ({', then '.join(dict.fromkeys((first.detail, cause.detail)))})"
        else:
            why = f"{first.what} ({first.detail}), then {cause.what} ({cause.detail})"
        domain = source.domain(task.row)
        self._results[task.number] = failed_sample(key, domain, task.length, self._reading.pad_id, why)
        return None

    def _fill_places(self) -> None:
        """Start a worker at each vacant place. Where the machine gives none it is tried again, but not for ever."""
        while self._vacant and self._broken is None and not self._closed:
            place, first = self._vacant[0]
            try:
                worker = self._start(place, first)
            except (OSError, EOFError) as error:
                self._failed_starts += 1
                if self._failed_starts >= _STARTS:
                    with self._lock:
                        self._break(f"no process can be started to read samples ({error}); lower data.workers")
                        self._lock.notify_all()
                return
            self._failed_starts = 0
            with self._lock:
                self._vacant.popleft()
                self._workers.append(worker)
                self._hand_out()

    def _break(self, why: str) -> None:
        """Nothing that was not read by now will be. Called with the lock held."""
        self._broken = self._broken or ReadError(why)


def _end(process: ForkServerProcess) -> None:
    if process.exitcode is None:
        process.kill()
        process.join(timeout=5)  # not longer: it may wait for a storage that does not answer
