"""Signals that ask for a clean stop: save at the end of the step, then exit with 75."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """``requested`` becomes true at SIGTERM, SIGINT or SIGUSR1 (Slurm's warning).

    A second SIGINT interrupts at once.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.requested = False
        self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
