"""One rank of each model-parallel group reads; the others are sent what it read.

    reader   Loader.next -> Step  --pickle beside its arrays, over gloo-->  the group's other ranks
                           uint8 patches  -------------------------------->  those of its first pipeline rank only

The others hold no sources, no index and no workers: at most the step in use and the one that is on its way. A thread
of each rank sends or receives the next step while this one is computed. It uses process groups of its own, over gloo on
every device: what is sent lies in the host's memory on both sides, and no kernel waits for it.

Whatever goes wrong on a reader is raised on every rank of the job, at the same step and with the same text.
"""

from __future__ import annotations

import pickle
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from megatron_qwen3vl.batch import Pack
from megatron_qwen3vl.data.loader import Loader, Step
from megatron_qwen3vl.data.workers import ReadError
from megatron_qwen3vl.errors import RunFailed, UserError
from megatron_qwen3vl.parallel.groups import Groups, gather_objects

CLOSE_S = 30.0  # that closing waits for the step on its way: who stops by itself has nothing to wait for
_ALIGNED = 64  # bytes; arrays begin at multiples of it
T = TypeVar("T")


@dataclass(frozen=True)
class Parcel(Generic[T]):
    """What a reader sends. ``facts`` must pickle; ``digest``, below 2^63, must be equal on the readers of a job.

    ``kept`` stays on the reader.
    """

    packs: tuple[Pack, ...]
    facts: T
    kept: Step | None = None
    digest: int = 0


@dataclass(frozen=True)
class _Failure:
    kind: type[UserError] | type[RunFailed]
    lines: tuple[str, ...]

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        if isinstance(error, UserError):
            return cls(UserError, tuple(error.problems))
        known = isinstance(error, ReadError | RunFailed)
        return cls(RunFailed, (str(error) if known else "".join(traceback.format_exception(error)).strip(),))


class Channel:
    """From the reader of a model-parallel group to its other ranks, one parcel after the other.

    A group of one rank sends nothing and has no thread.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Future] | None] = SimpleQueue()
        self.is_alone = groups.model_parallel.size() == 1
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        if not self.is_alone:
            self._thread.start()

    def share(self, make: Callable[[], Parcel[T]]) -> Future[Parcel[T] | _Failure]:
        """What ``make`` gives on the reader, for ``take`` on all ranks of its group; it is not called on the others.

        ``patches`` reach the first pipeline rank only. Every rank of the group must call this, in the same order. An
        exception of ``make`` travels as well.
        """
        future: Future[Parcel[T] | _Failure] = Future()
        if self.is_alone:
            future.set_result(_attempt(make))
        else:
            self._jobs.put((make, future))
        return future

    def take(self, future: Future[Parcel[T] | _Failure]) -> Parcel[T]:
        """The parcel, once it is there. Collective over all ranks of the job.

        Raises, on all of them, UserError or RunFailed where ``make`` failed on some reader, and UserError where the
        readers' digests differ.
        """
        outcome = future.result()
        failed = isinstance(outcome, _Failure)
        digest = 0 if isinstance(outcome, _Failure) else outcome.digest
        most = torch.tensor([int(failed), digest, -digest], device=self._groups.device.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self._groups.dp)
        some_failed, highest, lowest = most.tolist()
        if some_failed:
            self._raise(outcome if isinstance(outcome, _Failure) else None)
        if highest != -lowest:
            raise UserError(
                "data: the ranks that read do not plan the same packs: samples would be lost or used twice; give all "
                "nodes the same shards with the same indexes (run `data index` again), or one shared folder"
            )
        assert not isinstance(outcome, _Failure)
        return outcome

    def close(self) -> None:
        """Ends the thread. Not collective. Idempotent."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def _raise(self, own: _Failure | None) -> None:
        failures = [failure for failure in gather_objects(own) if failure is not None]
        lines = list(dict.fromkeys(line for failure in failures for line in failure.lines))
        if all(failure.kind is UserError for failure in failures):
            raise UserError(lines)
        raise RunFailed("\n".join(lines))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            make, future = job
            try:
                future.set_result(self._exchange(make))
            except Exception as error:  # a rank of the group is gone
                future.set_exception(error)

    def _exchange(self, make: Callable[[], Parcel[T]]) -> Parcel[T] | _Failure:
        if self._groups.is_reader:
            outcome = _attempt(make)
            self._send(outcome)
            return outcome
        return self._receive()

    def _send(self, outcome: Parcel[T] | _Failure) -> None:
        patches = [] if isinstance(outcome, _Failure) else [pack.patches for pack in outcome.packs]
        shapes = [None if array is None else array.shape for array in patches]
        bare = outcome
        if not isinstance(outcome, _Failure):
            bare = replace(outcome, packs=_with_patches(outcome.packs, [None] * len(patches)), kept=None)
        message = _pack_up((bare, shapes))
        dist.broadcast(torch.tensor([len(message)]), group=self._groups.feed, group_src=0)
        dist.broadcast(message, group=self._groups.feed, group_src=0)
        self._broadcast_patches(patches)

    def _receive(self) -> Parcel[T] | _Failure:
        size = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(size, group=self._groups.feed, group_src=0)
        message = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(message, group=self._groups.feed, group_src=0)
        outcome, shapes = _unpack(message)
        if isinstance(outcome, _Failure) or not self._groups.is_first_stage:
            return outcome
        patches = [None if shape is None else np.empty(shape, np.uint8) for shape in shapes]
        self._broadcast_patches(patches)
        return replace(outcome, packs=_with_patches(outcome.packs, patches))

    def _broadcast_patches(self, patches: Sequence[np.ndarray | None]) -> None:
        if self._groups.feed_pixels.size() > 1:
            for array in patches:
                if array is not None and array.size:
                    dist.broadcast(torch.from_numpy(array), group=self._groups.feed_pixels, group_src=0)


def _attempt(make: Callable[[], Parcel[T]]) -> Parcel[T] | _Failure:
    try:
        return make()
    except Exception as error:
        return _Failure.of(error)


def _with_patches(packs: Sequence[Pack], patches: Sequence[np.ndarray | None]) -> tuple[Pack, ...]:
    return tuple(replace(pack, patches=array) for pack, array in zip(packs, patches, strict=True))


def _pack_up(value: object) -> torch.Tensor:
    """uint8: a pickle of (sizes of the parts, the pickle without arrays), then the parts, each at its boundary."""
    parts: list[memoryview] = []

    def beside(buffer: pickle.PickleBuffer) -> None:
        parts.append(buffer.raw())

    content = pickle.dumps(value, protocol=5, buffer_callback=beside)
    head = pickle.dumps(([part.nbytes for part in parts], content))
    starts = np.cumsum([0, *(-(-size // _ALIGNED) * _ALIGNED for size in (8 + len(head), *(p.nbytes for p in parts)))])
    message = np.zeros(starts[-1], np.uint8)
    message[:8] = np.frombuffer(len(head).to_bytes(8, "little"), np.uint8)
    message[8 : 8 + len(head)] = np.frombuffer(head, np.uint8)
    for start, part in zip(starts[1:], parts, strict=False):
        message[start : start + part.nbytes] = part
    return torch.from_numpy(message)


def _unpack(message: torch.Tensor) -> Any:
    """What ``_pack_up`` was given; its arrays lie inside the message."""
    view = message.numpy().data
    end = 8 + int.from_bytes(view[:8], "little")
    sizes, content = pickle.loads(view[8:end])
    parts, start = [], -(-end // _ALIGNED) * _ALIGNED
    for size in sizes:
        parts.append(view[start : start + size])
        start += -(-size // _ALIGNED) * _ALIGNED
    return pickle.loads(content, buffers=parts)


class Feed(Generic[T]):
    """The steps of a stage, on every rank.

    ``about`` is what the loader's opener told, on every rank.
    """

    def __init__(self, groups: Groups, open_loader: Callable[[], tuple[Loader, T]], steps: int) -> None:
        """``steps`` are all that will be asked for. Collective over all ranks of the job.

        Raises, on all of them, what ``open_loader`` raised on any reader.
        """
        self._channel = Channel(groups)
        self._loader: Loader | None = None
        self._steps = steps
        self._ahead: Future[Parcel[Step] | _Failure] | None = None
        self._handed_out: Step | None = None

        def begin() -> Parcel[T]:
            self._loader, about = open_loader()
            return Parcel((), about)

        try:
            self.about: T = self._channel.take(self._channel.share(begin)).facts
        except (UserError, RunFailed):
            self.close()
            raise

    def next(self) -> Step:
        """This rank's packs. Collective over all ranks of the job; raises on all of them what any reader raised."""
        parcel = self._channel.take(self._ahead or self._channel.share(self._read))
        self._steps -= 1
        step = parcel.kept or replace(parcel.facts, packs=parcel.packs)
        self._handed_out = replace(step, packs=())
        # alone there is no thread to read ahead in: the loader's workers do
        self._ahead = self._channel.share(self._read) if self._steps > 0 and not self._channel.is_alone else None
        return step

    def state(self) -> dict[str, Any]:
        """The loader's after the last step that `next` returned, for the checkpoint; empty where nothing is read."""
        if self._loader is None:
            return {}
        return self._loader.state() if self._handed_out is None else self._loader.state_after(self._handed_out)

    @property
    def channel(self) -> Channel:
        """For what else readers send, in the order in which all ranks ask for it."""
        return self._channel

    def close(self) -> None:
        """Ends the thread and the workers. Not collective. Idempotent."""
        self._channel.close()
        if self._loader is not None:
            self._loader.close()

    def _read(self) -> Parcel[Step]:
        assert self._loader is not None
        step = self._loader.next()
        return Parcel(step.packs, step.to_send(), step, step.digest)
