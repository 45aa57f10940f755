"""``data import FORMAT SOURCE OUT [key=value ...]``: the words of the command, its help, and what it prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.frame import Format
from megatron_qwen3vl.importers.registry import FORMATS, find_format
from megatron_qwen3vl.importers.run import NAMED, Import, SplitSummary, run_import
from megatron_qwen3vl.importers.run import Progress as Reached
from megatron_qwen3vl.importers.settings import CommonSettings, describe, read_settings

USAGE = "usage: megatron-qwen3vl data import FORMAT SOURCE OUT [key=value ...]"
SECONDS_BETWEEN_LOOKS = 0.2
FEW_SHARDS = 8  # are indexed here: starting processes would take longer


def import_command(arguments: Sequence[str], index: Callable[[list[str]], int]) -> int:
    """Returns 0, for it worked or help was asked for.

    Args:
        index: is given the words of ``data index`` for each split that holds shards.

    Raises:
        UserError: everything that the user can mend.
    """
    if {"-h", "--help"} & set(arguments):
        print("\n".join(_help([word for word in arguments if not word.startswith("-")])))
        return 0
    if any(word.startswith("-") for word in arguments):
        raise UserError([f"data import: unknown option {next(w for w in arguments if w.startswith('-'))}", USAGE])
    if len(arguments) < 3:
        raise UserError([USAGE, f"formats: {', '.join(FORMATS)}; `data import --help` says more"])
    name, source, out, *words = arguments
    chosen = find_format(name)
    common, settings = read_settings((CommonSettings, chosen.settings), words)
    if not Path(source).exists():
        raise UserError(f"data import: {source}: no such file or folder")
    task = Import(chosen, Path(source), Path(out), settings, common)
    with _Display() as display:
        summaries = run_import(task, display.reached)
    for summary in summaries:
        _print_summary(task.out, summary)
    if not any(summary.mark.samples for summary in summaries):
        raise UserError(f"data import: {source} gave no sample; {summaries[0].path_of_named} says why")
    tokenizer = [] if common.tokenizer is None else [f"tokenizer={common.tokenizer}"]
    for summary in summaries:
        if common.index and summary.mark.samples:
            workers = ["--workers", "1"] if summary.mark.shards < FEW_SHARDS else []
            index([str(task.out / summary.name), *workers, *tokenizer])
    return 0


def _help(words: Sequence[str]) -> list[str]:
    """Of one format where one is named."""
    if words:
        chosen = find_format(words[0])
        head = [USAGE.replace("FORMAT", chosen.name), "", f"{chosen.summary}", f"SOURCE: {chosen.source}"]
        return [*head, "", *_keys(chosen), "", "Keys of every format:", *describe(CommonSettings)]
    lines = [USAGE, "", "A public data set as it is on disk -> shards in OUT/train and OUT/held_out.",
             "The same command goes on after an interruption.", ""]  # fmt: skip
    for each in FORMATS.values():
        lines += [f"{each.name}: {each.summary}", f"  SOURCE: {each.source}", *_keys(each), ""]
    return [*lines, "Keys of every format:", *describe(CommonSettings)]


def _keys(chosen: Format) -> list[str]:
    return describe(chosen.settings) or ["  (no keys of its own)"]


def _print_summary(out: Path, summary: SplitSummary) -> None:
    mark = summary.mark
    size = f"{mark.num_bytes / 1e6:.1f} MB"
    print(f"{out}/{summary.name}: {mark.samples:,} samples, {mark.shards} shards, {size}", flush=True)
    for filtered, count in mark.unwanted.items():
        print(f"{summary.name}: {count:,} not wanted by {filtered}", file=sys.stderr)
    for line in summary.named:
        print(f"{summary.name}: {line}", file=sys.stderr)
    if mark.left_out or mark.notes:
        more = " (the first of them above)" if mark.left_out + mark.notes > NAMED else ""
        print(
            f"{summary.name}: {mark.left_out:,} left out, {mark.notes:,} kept without a part{more}: "
            f"{summary.path_of_named}",
            file=sys.stderr,
        )


class _Display:
    """A bar for each split on a terminal; elsewhere a line for each finished shard."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._split = ""
        self._looked = self._began = 0.0
        self._first, self._from = 0, 0.0

    def __enter__(self) -> _Display:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[samples]:,} samples, {task.fields[rate]:.0f}/s"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def reached(self, now: Reached) -> None:
        if now.split != self._split:
            self._begin(now)
        clock = time.monotonic()
        if now.shard is None and (self._bar is None or clock - self._looked < SECONDS_BETWEEN_LOOKS):
            return
        self._looked = clock
        seconds = max(clock - self._began, 1e-6)
        rate = (now.samples - self._first) / seconds
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=now.part or 0.0, samples=now.samples, rate=rate)
        elif now.shard is not None:
            line = f"{now.shard}: {now.samples:,} samples, {rate:,.0f}/s"
            if now.part is not None:
                behind = now.part - self._from
                left = f", {seconds * (1 - now.part) / behind:,.0f} s left" if behind > 0 else ""
                line += f", {100 * now.part:.0f}% of the source{left}"
            print(line, flush=True)

    def _begin(self, now: Reached) -> None:
        self._split, self._began = now.split, time.monotonic()
        self._first, self._from = now.samples, now.part or 0.0
        if self._bar is not None:
            total = None if now.part is None else 1.0
            self._task = self._bar.add_task(now.split, total=total, samples=now.samples, rate=0.0)
