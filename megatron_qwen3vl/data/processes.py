"""The same function on many things in several processes, results in order.

For work done once, before training: making indexes and catalogues. (Samples of a run are read by ``workers.py``.)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import TypeVar

_AHEAD = 4  # results of each process that may wait for an earlier one

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessDied(RuntimeError):
    """A process ended without a result; ``str`` says how."""


def available_cores() -> int:
    return len(os.sched_getaffinity(0))


def map_in_order(
    function: Callable[[Shared, Item], Result], shared: Shared, items: Sequence[Item], num_processes: int
) -> Iterator[Result | ProcessDied]:
    """``function(shared, item)`` of every item, in their order.

    Args:
        function: of a module; in another process whatever it raises ends that process.
        shared: goes to each process once.
        num_processes: 1 calls the function here.

    Yields:
        Its results; ProcessDied for an item that took its process with it.
    """
    if num_processes <= 1 or len(items) <= 1:
        for item in items:
            yield function(shared, item)
        return
    team = _Team(function, shared, min(num_processes, len(items)))
    try:
        done: dict[int, object] = {}
        submitted = 0
        for number in range(len(items)):
            while number not in done:
                last = min(len(items), number + _AHEAD * team.size)
                while submitted < last and team.submit(submitted, items[submitted]):
                    submitted += 1
                done.update(team.wait())
            yield done.pop(number)  # type: ignore[misc]
    finally:
        team.close()


class _Team:
    def __init__(self, function: Callable[..., object], shared: object, size: int) -> None:
        self.size = size
        self._target = (function, shared)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([function.__module__])
        self._idle: deque[Connection] = deque()
        self._busy: dict[Connection, int] = {}
        self._processes: dict[Connection, ForkServerProcess] = {}
        for _ in range(size):
            self._start()

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, *self._target), daemon=True)
        process.start()
        theirs.close()
        self._idle.append(ours)
        self._processes[ours] = process

    def submit(self, number: int, item: object) -> bool:
        """False while every process is busy."""
        if not self._idle:
            return False
        connection = self._idle.popleft()
        self._busy[connection] = number
        with suppress(OSError):  # it died while idle: `wait` sees the closed pipe
            connection.send(item)
        return True

    def wait(self) -> dict[int, object]:
        """What has arrived by number, at least one."""
        arrived: dict[int, object] = {}
        for ready in wait(list(self._busy)):
            assert isinstance(ready, Connection)
            number = self._busy.pop(ready)
            try:
                arrived[number] = ready.recv()
                self._idle.append(ready)
            except (EOFError, OSError):
                process = self._processes.pop(ready)
                process.join()
                arrived[number] = ProcessDied(f"the process working on it died (exit status {process.exitcode})")
                self._start()
        return arrived

    def close(self) -> None:
        for connection, process in self._processes.items():
            connection.close()
            process.terminate()
            process.join()


def _work(connection: Connection, function: Callable[[object, object], object], shared: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started it decides
    threading.Thread(target=_follow_parent, daemon=True).start()
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(function(shared, item))


def _follow_parent() -> None:
    """Does not outlive who started it, killed with -9 or not."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
