"""The curves of a run: which figures, over all stages; as charts of the page and as one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.report.chart import Chart, Line, draw, thin
from megatron_qwen3vl.report.files import Run, Series, StageLog, all_domains, read_run, whole
from megatron_qwen3vl.report.tables import note, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pick = Callable[[StageLog], Series | None]


def num_updates(run: Run) -> int:
    return sum(log.steps for log in run.stages)


def _line(run: Run, name: str, colour: int, pick: Pick, dots: bool = False) -> Line:
    series = [pick(log) for log in run.stages]
    segments = [thin(part, num_updates(run)) for part in series if part is not None]
    return Line(name, [segment for segment in segments if segment], colour, dots)


def _figure(name: str) -> Pick:
    return lambda log: log.figures[name]


def _speed(log: StageLog) -> Series:
    tokens, seconds = log.figures["tokens"], log.figures["seconds"]
    speed = Series()
    for x, count, time in zip(tokens.x, tokens.y, seconds.y, strict=True):
        speed.add(x, ratio(count, time))
    return speed


def _loss_lines(run: Run) -> list[Line]:
    return [
        _line(run, "per token", 2, _figure("token_loss")),
        _line(run, "reweighted", 1, _figure("loss")),
        _line(run, "held-out, reweighted", 3, lambda log: log.held_out, dots=True),
    ]


def _chart(run: Run, title: str, lines: Sequence[Line], from_zero: bool = False, logarithmic: bool = False) -> str:
    stages = [(log.before, log.name) for log in run.stages]
    return draw(Chart(title, lines, stages, num_updates(run), from_zero, logarithmic))


def _phase_lines(run: Run) -> list[Line]:
    return [
        _line(run, "waiting for data", 2, _figure("data_seconds")),
        _line(run, "forward and backward", 1, _figure("model_seconds")),
        _line(run, "optimizer", 3, _figure("optimizer_seconds")),
    ]


def _memory(log: StageLog) -> Series:
    held = log.figures["memory_bytes"]
    gib = Series()
    for x, value in zip(held.x, held.y, strict=True):
        gib.add(x, value / 2**30)
    return gib


def run_charts(run: Run) -> str:
    charts = [
        _chart(run, "Loss", _loss_lines(run)),
        _chart(run, "Gradient norm", [_line(run, "norm", 1, _figure("grad_norm"))], logarithmic=True),
        _chart(run, "Learning rate", [_line(run, "rate", 1, _figure("learning_rate"))], from_zero=True),
        _chart(run, "Tokens per second", [_line(run, "speed", 1, _speed)], from_zero=True),
        _chart(run, "Auxiliary loss of the router", [_line(run, "aux", 1, _figure("aux_loss"))]),
        _chart(run, "Busiest expert over the mean", [_line(run, "load", 1, _figure("expert_load"))]),
        _chart(run, "Busiest rank in the ViT over the mean", [_line(run, "balance", 1, _figure("vision_balance"))]),
        _chart(run, "Padding, share of positions", [_line(run, "padding", 1, _figure("padding_fraction"))]),
        _chart(run, "Seconds of a step", _phase_lines(run), from_zero=True),
        _chart(run, "Peak memory of the writing rank, GiB", [_line(run, "memory", 1, _memory)], from_zero=True),
    ]
    remark = "Across: updates of the whole run. In a long run a point is its neighbours' mean, the band their range."
    return _together("charts", charts, remark)


def domain_charts(run: Run) -> str:
    charts = []
    for name in all_domains(run):

        def training(log: StageLog, name: str = name) -> Series | None:
            return log.domains.get(name)

        def per_token(log: StageLog, name: str = name) -> Series | None:
            return log.domain_token_losses.get(name)

        def held_out(log: StageLog, name: str = name) -> Series | None:
            return log.held_out_domains.get(name)

        lines = [
            _line(run, "per token", 2, per_token),
            _line(run, "reweighted", 1, training),
            _line(run, "held-out", 3, held_out, dots=True),
        ]
        charts.append(_chart(run, name, lines))
    return _together("charts small", charts, "The loss of each domain alone; held-out losses are reweighted.")


def _together(kind: str, charts: Sequence[str], remark: str) -> str:
    return f'<div class="{kind}">{"".join(charts)}</div>{note(remark)}' if any(charts) else ""


def write_curves(run_dir: Path, picture: Path) -> Path:
    """The loss over all stages as a picture (PNG, or what the name of ``picture`` says); returns its path.

    Raises UserError when the folder is no run or has no steps yet.
    """
    run = read_run(run_dir)
    lines = [line for line in _loss_lines(run) if line.segments]
    if not lines:
        raise UserError(f"{run_dir}: has no losses to draw yet; let the run make a few steps")
    from matplotlib.figure import Figure  # takes half a second

    figure = Figure(figsize=(9, 3.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    colours = {1: "#1f66c1", 2: "#c2570c", 3: "#177a4c"}
    for line in lines:
        style: dict[str, Any] = {"marker": "o", "markersize": 4} if line.dots else {}
        for number, segment in enumerate(line.segments):
            xs, ys = [p.x for p in segment], [p.y for p in segment]
            label = line.name if number == 0 else None
            axes.plot(xs, ys, color=colours[line.colour], label=label, linewidth=1.2, **style)
    _mark_stages(axes, run)
    axes.set_xlim(0, num_updates(run) + 1)
    axes.set_xlabel("updates")
    axes.set_ylabel("loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(picture)
    return picture


def _mark_stages(axes: Axes, run: Run) -> None:
    """A dashed line where a stage begins, and above it the stage's name and sequence length, in two rows in turn: short
    stages stand close together."""
    for row, log in enumerate(run.stages):
        if log.before:
            axes.axvline(log.before + 0.5, color="#9aa5b5", linestyle=(0, (3, 3)), linewidth=0.8)
        length = whole(run.setting("stages", log.name, "sequence_length"))
        title = f"{log.name.upper()} · {length:,}" if length else log.name.upper()
        middle = log.before + (log.steps + 1) / 2
        axes.annotate(
            title,
            (middle, 1.02 + 0.06 * (row % 2)),
            xycoords=axes.get_xaxis_transform(),
            ha="center",
            color="#5c6675",
            fontsize=9,
            annotation_clip=False,
        )
