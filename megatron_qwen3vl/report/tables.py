"""The tables of the report: functions from a run to HTML. Everything that comes from data is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from megatron_qwen3vl.report.chart import short
from megatron_qwen3vl.report.files import LISTED, Listing, Run, StageLog, number, planned_steps, whole

MOST_STARTS = 50
AXES = ("dp", "tp", "pp", "vpp", "cp", "ep", "etp", "vision_dp")
PHASES = ("data", "model", "optimizer")
LONGEST_TEXT = 300  # characters of a reason or a key
STAGE_HEADS = (
    "stage",
    "steps",
    "sequence",
    "trainable",
    "tokens",
    "with loss",
    "first loss",
    "last loss",
    "tokens/s",
    "padding",
    "time",
    "skipped",
    "failed",
)


def safe(value: object) -> str:
    """Escaped, and cut where it is longer than anybody reads."""
    text = str(value)
    return escape(text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…")


def clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "–"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Cells are HTML already; the columns of ``left`` hold text, the others numbers."""
    kinds = ["" if i in left else ' class="n"' for i in range(len(heads))]
    head = "".join(f"<th{kind}>{name}</th>" for kind, name in zip(kinds, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def note(text: str) -> str:
    return f'<p class="note">{text}</p>'


def stage_table(run: Run) -> str:
    if not run.stages:
        return ""
    rows = [_stage_row(run, log) for log in run.stages]
    return table(STAGE_HEADS, rows, left=(0, 3)) + note(
        "Tokens are without padding and with visual tokens; time is that of the steps, without saving and validation."
    )


def _stage_row(run: Run, log: StageLog) -> Sequence[str]:
    planned, losses = planned_steps(run, log.name), log.finite("loss")
    trainable = run.setting("stages", log.name, "trainable")
    padding, tokens, seconds = log.finite("padding_fraction"), log.total("tokens"), log.total("seconds")
    return (
        escape(log.name),
        f"{log.last_step:,}" + (f" of {planned:,}" if planned is not None else ""),
        short(whole(run.setting("stages", log.name, "sequence_length")) or math.nan),
        ", ".join(safe(name) for name in trainable) if isinstance(trainable, list) else "–",
        short(tokens),
        short(log.total("loss_tokens")),
        f"{losses[0]:.4f}" if losses else "–",
        f"{losses[-1]:.4f}" if losses else "–",
        short(ratio(tokens, seconds)),
        percent(ratio(sum(padding), len(padding)), digits=2),
        clock(seconds),
        f"{log.skipped:,}",
        short(log.total("failed_samples")),
    )


def share_table(run: Run) -> str:
    """Of the tokens that carry a loss: what each domain gave to each stage."""
    rows = []
    for name in sorted({name for log in run.stages for name in log.domain_tokens}):
        cells = []
        for log in run.stages:
            share = ratio(log.domain_tokens.get(name, 0.0), sum(log.domain_tokens.values()))
            bar = f'<i style="width:{100 * share:.1f}%"></i>' if share > 0 else ""
            cells.append(f'<span class="share">{bar}<span>{percent(share)}</span></span>')
        rows.append((safe(name), *cells, short(sum(log.domain_tokens.get(name, 0.0) for log in run.stages))))
    if not rows:
        return ""
    heads = ("domain", *(escape(log.name) for log in run.stages), "tokens with loss")
    return table(heads, rows) + note("Share of the tokens that carry a loss, by stage.")


def source_table(run: Run) -> str:
    """Of all tokens read: what the mixture asks of each source and what it gave, by stage."""
    logs = [log for log in run.stages if log.source_tokens]
    asked = {log.name: _asked(run, log.name) for log in logs}
    rows = []
    for name in sorted({name for log in logs for name in log.source_tokens}):
        cells = []
        for log in logs:
            given = ratio(log.source_tokens.get(name, 0.0), sum(log.source_tokens.values()))
            wanted = number(asked[log.name].get(name))
            cells.append(f"{percent(wanted)} / {percent(given)}" if name in log.source_tokens else "–")
        rows.append((safe(name), *cells, short(sum(log.source_tokens.get(name, 0.0) for log in logs))))
    heads = ("source", *(escape(log.name) for log in logs), "tokens")
    remark = "Share of the tokens read, visual ones included: asked by the mixture / given. Each lane keeps its shares "
    return table(heads, rows) + note(remark + "within one longest sample, so a short stage may differ.") if rows else ""


def _asked(run: Run, stage: str) -> dict:
    """The shares of the stage's last start."""
    found = [start.get("shares") for start in run.starts if start.get("stage") == stage]
    return found[-1] if found and isinstance(found[-1], dict) else {}


def start_table(run: Run) -> str:
    """Each job that began or went on, and where."""
    rows = [
        (
            safe(str(start.get("time")).replace("T", " ").removesuffix("+00:00")),
            f"{safe(start.get('stage'))} step {safe(start.get('step'))}",
            "a job begins" if start.get("job_begins") is True else "the same job goes on",
            _layout(start.get("layout"), start.get("device")),
            safe(Path(str(start["checkpoint"])).name) if start.get("checkpoint") else "–",
        )
        for start in run.starts[-MOST_STARTS:]
    ]
    heads = ("time (UTC)", "from", "", "layout", "checkpoint")
    more = note(f"The last {MOST_STARTS} of {len(run.starts):,}.") if len(run.starts) > MOST_STARTS else ""
    return table(heads, rows, left=range(5)) + more if rows else ""


def _layout(layout: object, device: object) -> str:
    """What differs from one process: ``4 processes (cuda): dp 2, tp 2``."""
    if not isinstance(layout, dict):
        return "–"
    size = whole(layout.get("world_size"))
    axes = [f"{axis} {layout[axis]}" for axis in AXES if whole(layout.get(axis)) > 1]
    count = f"{size:,} process{'es' if size != 1 else ''}"
    return safe(f"{count} on {device}" + (f": {', '.join(axes)}" if axes else ""))


def phase_table(run: Run) -> str:
    """Where the time of each stage went."""
    rows = []
    for log in run.stages:
        seconds, saving = log.total("seconds"), log.total("save_seconds")
        parts = [log.total(f"{phase}_seconds") for phase in PHASES]
        if not sum(parts):
            continue
        shares = [percent(ratio(part, seconds)) for part in (*parts, seconds - sum(parts))]
        memory = max(log.finite("memory_bytes"), default=math.nan) / 2**30
        rows.append((escape(log.name), clock(seconds), *shares, clock(saving), f"{short(memory)} GiB"))
    heads = ("stage", "time", "waiting for data", "forward and backward", "optimizer", "rest", "saving", "memory")
    remark = "Of the steps' time, on the rank that writes. Saving comes on top: copying and handing over. Memory is "
    remark += "that rank's peak: tensors on CUDA, else its resident set."
    return table(heads, rows) + note(remark) if rows else ""


def checkpoint_table(run: Run) -> str:
    rows = [
        (
            escape(c.path),
            short(c.total_steps),
            f"{c.num_bytes / 1e6:,.1f} MB",
            datetime.fromtimestamp(c.written, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        )
        for c in run.checkpoints
    ]
    heads = ("checkpoint", "updates behind it", "size", "written")
    return table(heads, rows, left=(0, 3)) if rows else "<p>None.</p>"


def skipped_tables(listing: Listing) -> str:
    if not listing.total:
        return "<p>None.</p>"
    rows = [
        (safe(row.get("stage")), safe(row.get("step")), safe(row.get("reason")), _keys(row.get("keys")))
        for row in listing.first
    ]
    steps = table(("stage", "step", "reason", "samples"), rows, left=(0, 2, 3))
    return _counted(listing, "reason", "steps") + steps + _cut(listing)


def quarantine_tables(listing: Listing) -> str:
    if not listing.total:
        return "<p>None.</p>"
    columns = ("stage", "step", "key", "reason")
    rows = [tuple(safe(row.get(column)) for column in columns) for row in listing.first]
    return _counted(listing, "source", "times named") + table(columns, rows, left=(0, 2, 3)) + _cut(listing)


def _counted(listing: Listing, head: str, what: str) -> str:
    most = sorted(listing.counts.items(), key=lambda item: (-item[1], item[0]))[:LISTED]
    return table((head, what), [(safe(name), f"{count:,}") for name, count in most])


def _cut(listing: Listing) -> str:
    return note(f"The first {LISTED} of {listing.total:,}.") if listing.total > LISTED else ""


def _keys(keys: object) -> str:
    if not isinstance(keys, list):
        return "–"
    shown = ", ".join(safe(key) for key in keys[:3])
    return shown + (f" and {len(keys) - 3:,} more" if len(keys) > 3 else "")
