"""How far a walk over many shards is: a bar on a terminal, else a line now and then. On stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY_S = 15.0  # between two lines where there is no terminal; a shorter walk says nothing there


class ShardProgress:
    """To be used in a ``with``; ``advance`` after each shard."""

    def __init__(self, what: str, num_shards: int) -> None:
        self._what, self._num_shards = what, num_shards
        self._begun = self._said = time.monotonic()
        self._shards = self._samples = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("shards, {task.fields[rate]}, left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(what, total=num_shards, rate="")

    def __enter__(self) -> ShardProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, samples: int) -> None:
        self._shards += 1
        self._samples += samples
        self._bar.update(self._task, completed=self._shards, rate=self._rate())
        now = time.monotonic()
        if self._bar.disable and now - self._said >= _EVERY_S:
            self._said = now
            left = (now - self._begun) / self._shards * (self._num_shards - self._shards)
            done = f"{self._shards:,} of {self._num_shards:,} shards"
            print(f"{self._what}: {done}, {self._rate()}, {left:.0f} s left", file=sys.stderr, flush=True)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        return f"{self._shards / seconds:,.1f} shards/s, {self._samples / seconds:,.0f} samples/s"
