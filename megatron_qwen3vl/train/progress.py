"""What a person sees of a run: a line now and then (a live bar on a terminal) and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

SECONDS_BETWEEN_LINES = 5.0
WIDTH_OF_A_FILE = 130  # columns where the output is no terminal


@dataclass(frozen=True)
class StageSummary:
    stage: str
    steps: int
    sequence_length: int
    tokens: int
    first_loss: float | None
    last_loss: float | None
    seconds: float
    skipped: int
    failed_samples: int


def console() -> Console:
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=WIDTH_OF_A_FILE)


class Display:
    """Progress of one stage; silent on all ranks but the writer."""

    def __init__(self, stage: str, done: int, num_steps: int, enabled: bool) -> None:
        self._stage, self._done, self._num_steps, self._enabled = stage, done, num_steps, enabled
        self._console = console()
        self._last_line, self._seconds = 0.0, 0.0
        self._first = done
        self._bar: Progress | None = None
        if enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(stage, total=num_steps, completed=done, figures="")
            self._bar.start()

    def step(self, row: dict) -> None:
        if not self._enabled:
            return
        self._done = row["step"]
        self._seconds += row["seconds"]
        rate = row["tokens"] / max(row["seconds"], 1e-9)
        loss = "no labels" if row["loss"] is None else f"loss {row['loss']:.4f}"
        figures = f"{loss} · {rate:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, figures=figures)
            return
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES and self._done not in (self._first + 1, self._num_steps):
            return
        self._last_line = now
        left = (self._num_steps - self._done) * self._seconds / max(self._done - self._first, 1)
        self._console.print(
            f"{self._stage} step {self._done}/{self._num_steps} · {figures} · lr {row['learning_rate']:.2e} · "
            f"grad {row['grad_norm'] or 0.0:.3f} · {_clock(left)} left"
        )

    def say(self, text: str) -> None:
        if self._enabled:
            self._console.print(text, markup=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s"


def print_summary(summaries: Sequence[StageSummary]) -> None:
    table = Table(title="pre-training")
    columns = ("stage", "steps", "sequence", "tokens", "first loss", "last loss", "tokens/s", "time", "skipped", "bad")
    for column in columns:
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in summaries:
        table.add_row(
            row.stage,
            str(row.steps),
            f"{row.sequence_length:,}",
            f"{row.tokens:,}",
            "-" if row.first_loss is None else f"{row.first_loss:.4f}",
            "-" if row.last_loss is None else f"{row.last_loss:.4f}",
            f"{row.tokens / max(row.seconds, 1e-9):,.0f}",
            _clock(row.seconds),
            str(row.skipped),
            str(row.failed_samples),
        )
    console().print(table)
