"""``pretrain --multirun``: one process per job, one after another, each with its own subfolder of ``run.dir``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from megatron_qwen3vl.config.load import expand_sweep, load_config
from megatron_qwen3vl.errors import UserError

STOPPED = 75


@dataclass(frozen=True)
class Job:
    number: int
    overrides: tuple[str, ...]
    status: int
    seconds: float
    loss: float | None  # of the last step


class _Child:
    """The job in progress; passes signals on to it, so that it saves before it stops."""

    def __init__(self) -> None:
        self.stopping = False
        self._process: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._pass_on)

    def run(self, command: Sequence[str]) -> int:
        self._process = subprocess.Popen(command, start_new_session=True)  # a Ctrl-C reaches the job once, through here
        return self._process.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def run_sweep(overrides: Sequence[str]) -> int:
    """Run every job, print a table, and return 0 only when all of them did; 75 when a signal stopped the sweep.

    A job that fails does not stop the others. Raises UserError when the overrides do not parse.
    """
    child = _Child()
    jobs = []
    planned = expand_sweep(overrides)
    for number, job in enumerate(planned):
        if child.stopping:
            break
        print(f"job {number + 1} of {len(planned)}: {' '.join(job)}", flush=True)
        jobs.append(_run_job(child, number, job))
    print(_table(jobs), flush=True)
    if child.stopping:
        return STOPPED
    return 0 if all(job.status == 0 for job in jobs) else 1


def _run_job(child: _Child, number: int, overrides: Sequence[str]) -> Job:
    begin = time.monotonic()
    try:
        folder = Path(load_config(overrides).run.dir) / str(number)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        return Job(number, tuple(overrides), 2, time.monotonic() - begin, None)
    keys = [override for override in overrides if not override.startswith("run.dir=")]
    status = child.run([sys.executable, "-m", "megatron_qwen3vl", "pretrain", *keys, f"run.dir={_quote(str(folder))}"])
    return Job(number, tuple(overrides), status, time.monotonic() - begin, _last_loss(folder / "metrics.jsonl"))


def _quote(text: str) -> str:
    """As a quoted string of Hydra's override grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _last_loss(metrics: Path) -> float | None:
    if not metrics.is_file():
        return None
    lines = metrics.read_text().splitlines()
    return json.loads(lines[-1])["loss"] if lines else None


def _table(jobs: Sequence[Job]) -> str:
    rows = ["job  status  seconds  last loss  overrides"]
    for job in jobs:
        loss = "-" if job.loss is None else f"{job.loss:.4f}"
        rows.append(f"{job.number:3}  {job.status:6}  {job.seconds:7.1f}  {loss:>9}  {' '.join(job.overrides)}")
    return "\n".join(rows)
