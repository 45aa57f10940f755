"""One self-contained HTML page about a run: no network, no script, readable on a phone, light or dark.

read_run (files.py) -> render: summary, tables.py, curves.py -> report.html
"""

from __future__ import annotations

import math
import os
from html import escape
from pathlib import Path

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.report.answers import answers_section
from megatron_qwen3vl.report.chart import short
from megatron_qwen3vl.report.curves import domain_charts, num_updates, run_charts
from megatron_qwen3vl.report.files import Run, planned_steps, read_run, whole
from megatron_qwen3vl.report.style import STYLE
from megatron_qwen3vl.report.tables import (
    checkpoint_table,
    clock,
    phase_table,
    quarantine_tables,
    ratio,
    safe,
    share_table,
    skipped_tables,
    source_table,
    stage_table,
    start_table,
)


def write_report(run_dir: Path) -> Path:
    """Write ``<run_dir>/report.html`` and return its path.

    Missing files are fine. Raises UserError when the folder is no run, or cannot be written to.
    """
    run = read_run(run_dir)
    target, new = run_dir / "report.html", run_dir / ".report.html.new"
    try:
        new.write_text(render(run), encoding="utf-8", errors="replace")  # a key may hold bytes that are not UTF-8
        os.replace(new, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error}); mend the folder's rights or free the disk") from error
    return target


def render(run: Run) -> str:
    name = escape(run.folder.resolve().name)
    configuration = f"<details><summary>config.yaml</summary><pre>{escape(run.config_text)}</pre></details>"
    sections = [
        f"<h1>{name}</h1>",
        _summary(run),
        _section("Stages", stage_table(run)),
        _section("Starts and layouts", start_table(run)),
        _section("Held-out answers", answers_section(run.answers)),
        _section("Curves", run_charts(run)),
        _section("Loss by domain", domain_charts(run)),
        _section("Data", source_table(run) + share_table(run)),
        _section("Time and memory", phase_table(run)),
        _section("Checkpoints on disk", checkpoint_table(run)),
        _section("Skipped steps", skipped_tables(run.skipped)),
        _section("Quarantined samples", quarantine_tables(run.quarantine)),
        _section("Configuration", configuration if run.config_text else ""),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{name}</title><style>{STYLE}</style></head>'
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>{body}" if body else ""


def _summary(run: Run) -> str:
    sentences = [_shape(run), *(_progress(run) if num_updates(run) else ["<b>This run has no steps yet.</b>"])]
    warnings = "".join(
        f'<p class="warn">{escape(name)}: {count:,} lines could not be read and are left out.</p>'
        for name, count in run.unreadable.items()
    )
    return f"<p>{' '.join(sentence for sentence in sentences if sentence)}</p>{warnings}"


def _shape(run: Run) -> str:
    text, vision = ("model", "text_config"), ("model", "vision_config")
    layers = run.setting(*text, "num_hidden_layers")
    if layers is None:
        return ""
    experts = whole(run.setting(*text, "num_experts"))
    kind = f"mixture of {experts} experts" if experts else "dense"
    return (
        f"A {kind} model: {safe(layers)} language layers of width {safe(run.setting(*text, 'hidden_size'))}, "
        f"{safe(run.setting(*vision, 'depth'))} vision layers of width {safe(run.setting(*vision, 'hidden_size'))}, "
        f"vocabulary {short(whole(run.setting(*text, 'vocab_size')))}; {safe(run.setting('dtype'))}, "
        f"loss exponent {safe(run.setting('loss', 'exponent'))}, seed {safe(run.setting('run', 'seed'))}."
    )


def _progress(run: Run) -> list[str]:
    """What the run has made of its steps, in sentences."""
    stages = run.stages
    tokens, seconds = (sum(log.total(figure) for log in stages) for figure in ("tokens", "seconds"))
    failed, left_out = (sum(log.total(figure) for log in stages) for figure in ("failed_samples", "left_out"))
    losses = [loss for log in stages for loss in log.finite("loss")]
    held_out = [y for log in stages for y in log.held_out.y if math.isfinite(y)]
    names = ", ".join(dict.fromkeys(escape(log.name) for log in stages))
    return [
        f"<b>{num_updates(run):,} updates</b> in {names} over {short(tokens)} tokens (padding not counted) "
        f"took {clock(seconds)}, {short(ratio(tokens, seconds))} tokens/s.",
        f"The reweighted loss went from {losses[0]:.4f} to <b>{losses[-1]:.4f}</b>." if losses else "",
        f"The last held-out loss is {held_out[-1]:.4f}." if held_out else "",
        _whereabouts(run),
        _restarts(run),
        f"Steps skipped: {run.skipped.total:,}; failed uses of samples: {short(failed)}; "
        f"samples left out: {short(left_out)}.",
    ]


def _restarts(run: Run) -> str:
    jobs = sum(start.get("job_begins") is True for start in run.starts)
    return f"It was started {jobs:,} times." if jobs > 1 else ""


def _whereabouts(run: Run) -> str:
    """Whether the last stage that config.yaml names has reached its last step."""
    names, last = run.setting("run", "stages"), run.stages[-1]
    if not isinstance(names, list) or not names:
        return ""
    planned = planned_steps(run, str(names[-1]))
    if planned is not None and last.name == str(names[-1]) and last.last_step >= planned:
        return "All stages are done."
    return f"It stands at {escape(last.name)} step {last.last_step:,}; there is more to do."
