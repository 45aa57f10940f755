"""A process that reads samples: its life, its limits, and what it sends.

Every message to the trainer is a header (8 bytes length, JSON) and the bytes of the arrays that it lists. Nothing that
a worker sends is unpickled: a decoder that was tricked must not speak to the trainer in code.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch

from megatron_qwen3vl.batch import Sample

OUT_OF_MEMORY = 77  # exit status of a worker that ran into its own limit
READY = "ready"

_ARRAYS = ("input_ids", "labels", "positions", "visual_index", "grids", "patches")
_TYPES = ("<i4", "|u1")
_CANNOT_ALLOCATE = ("can't allocate memory", "bad_alloc")  # what torch raises is a RuntimeError


class ReadError(RuntimeError):
    """Reading a sample ended in an exception, or no process can be kept to read it; a bad sample does neither."""


Message = Sample | ReadError | str


def run_worker(connection: Connection, read: Callable[[Any], Sample], memory: int | None) -> None:
    """A worker's life: read tasks in order until the pipe closes or the parent is gone.

    Args:
        read: gives the sample of a task; raises ReadError.
        memory: bytes that it may take beside what it began with; None is no limit. Beyond them the process ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()
    warnings.simplefilter("ignore")  # of libraries, about what is wrong with a picture
    torch.set_num_threads(1)
    if memory is not None:
        limit_memory(memory)
    try:
        _send(connection, READY)
        while True:
            task = connection.recv()
            try:
                result: Message = read(task)
            except ReadError as error:
                result = ReadError(f"{error}\n{traceback.format_exc()}")
            _send(connection, result)
    except (EOFError, OSError):
        return  # the other end is closed
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def limit_memory(extra: int) -> None:
    """Let this process take at most ``extra`` bytes beside what it has: allocations beyond fail.

    The limit is on private writable memory (RLIMIT_DATA); mapped files do not count.
    """
    with open("/proc/self/status") as file:
        (taken,) = (int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = taken + extra
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _CANNOT_ALLOCATE)
    )


def _end_with_parent() -> None:
    """The kernel kills this process when the parent's end of the pipe between them closes, however the parent ended.

    A thread that waits for it would not do: a decoder that hangs may hold the interpreter's lock, and a stopped process
    runs no thread.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = int(parent.sentinel)
    fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if wait([sentinel], timeout=0):  # it was gone before
        os._exit(1)


def _send(connection: Connection, message: Message) -> None:
    arrays: list[np.ndarray] = []
    if isinstance(message, Sample):
        found = [vars(message)[name] for name in _ARRAYS]
        arrays = [np.ascontiguousarray(array) for array in found if array is not None]
        header: dict[str, Any] = {
            "sample": [message.key, message.domain, message.failure],
            "arrays": [None if array is None else [array.dtype.str, array.shape] for array in found],
        }
    else:
        header = {"error": str(message)} if isinstance(message, ReadError) else {"word": message}
    text = json.dumps(header).encode()
    parts = [memoryview(len(text).to_bytes(8, "little") + text)]
    parts += [array.reshape(-1).view(np.uint8).data for array in arrays]
    for view in parts:
        rest = view
        while rest:
            rest = rest[os.write(connection.fileno(), rest) :]


class Inbox:
    """What one worker sends, taken as it arrives: a worker that stops within a message holds up nobody."""

    def __init__(self) -> None:
        self._steps = _incoming()
        self._rest = memoryview(next(self._steps))

    def read(self, connection: Connection) -> Message | None:
        """Take what has arrived on a readable connection; the message once it is whole. Raises EOFError at the end,
        ValueError at what no worker sends."""
        count = os.readv(connection.fileno(), [self._rest])
        if count == 0:
            raise EOFError
        self._rest = self._rest[count:]
        while not self._rest:
            try:
                self._rest = memoryview(next(self._steps))
            except StopIteration as end:
                message: Message = end.value
                self._steps = _incoming()
                self._rest = memoryview(next(self._steps))
                return message
        return None


def _incoming() -> Generator[bytearray, None, Message]:
    """Yields what is to be filled next, returns the message."""
    size = bytearray(8)
    yield size
    text = bytearray(int.from_bytes(size, "little"))
    yield text
    header = json.loads(text)
    if "error" in header:
        return ReadError(header["error"])
    if "word" in header:
        return str(header["word"])
    arrays: dict[str, Any] = {}
    for name, described in zip(_ARRAYS, header["arrays"], strict=True):
        if described is None:
            arrays[name] = None
            continue
        kind, shape = described
        if kind not in _TYPES:
            raise ValueError(f"an array of type {kind}")
        data = bytearray(np.dtype(kind).itemsize * int(np.prod(shape, dtype=np.int64)))
        if data:
            yield data
        arrays[name] = np.frombuffer(data, kind).reshape(shape)
    key, domain, failure = header["sample"]
    return Sample(key=key, domain=domain, failure=failure, **arrays)
