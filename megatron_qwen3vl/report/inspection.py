"""``data inspect --html``: one self-contained page about a mixture, a domain or a folder, with packs to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from megatron_qwen3vl.batch import Pack
from megatron_qwen3vl.data.inspect import Fill, Holdings, Packing
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.report.chart import short
from megatron_qwen3vl.report.pack_view import Look, show_pack
from megatron_qwen3vl.report.style import INSPECTION_STYLE, STYLE
from megatron_qwen3vl.report.tables import note, percent, ratio, safe, table

LEGEND = (
    'A token is a box; its number shows where one rests on it. <i class="p">Predicted</i> tokens are those that bear '
    'loss, the others are only read. <i class="k">Control tokens</i> come from the format, never from text. The small '
    "number before a text is its position (the same on all three axes); pictures name theirs: time, height, width. "
    "Pictures are what the patches hold, after resizing. Nothing attends across documents."
)


@dataclass(frozen=True)
class Inspection:
    """What the page shows; ``weights`` by source as the mixture asks for them."""

    path: str
    held: Sequence[Holdings]
    fills: Sequence[Fill]
    weights: Mapping[str, float]
    packing: Packing | None  # of ``packs``; None where nothing fits
    packs: Sequence[Pack]
    samples: Sequence[Pack]  # of domains that no shown pack holds


def write_inspection(target: Path, found: Inspection, look: Look) -> None:
    """Raises UserError where the page cannot be written."""
    try:
        target.write_text(render_inspection(found, look), encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another file") from None


def render_inspection(found: Inspection, look: Look) -> str:
    colours: dict[str, int] = {}
    packs = [
        show_pack(pack, f"Pack {number}, lane {pack.lane}", colours, look)
        for number, pack in enumerate(found.packs, start=1)
    ]
    samples = [show_pack(pack, f"One sample of {pack.documents[0].domain}", colours, look) for pack in found.samples]
    packing = found.packing
    origin = (
        f"The first packs of stage {packing.stage} with seed {packing.seed}, {packing.lanes:,} lanes and a sequence "
        f"length of {packing.sequence_length:,}: what a run with this configuration trains on first. "
        if packing is not None
        else "No pack can be made at any of the lengths above. "
    )
    total = sum(held.total.tokens for held in found.held)
    heading = escape(Path(found.path).name)
    facts = f"{sum(h.total.samples for h in found.held):,} usable samples, {short(total)} tokens, "
    facts += f"{short(sum(h.total.visual for h in found.held))} of them visual."
    body = [
        f"<h1>{heading}</h1><p>{safe(found.path)}: {facts}</p>",
        f"<h2>Sources</h2>{_sources(found)}",
        f"<h2>Domains</h2>{_domains(found)}",
        f"<h2>Tokens per sample</h2>{''.join(map(_histogram, found.held))}",
        f"<h2>Packing</h2>{_fills(found)}",
        f"<h2>Packs</h2><p>{escape(origin)}{LEGEND}</p>{''.join(packs)}",
        f"<h2>Samples of other domains</h2>{''.join(samples)}" if samples else "",
        f"<h2>Cannot be used</h2>{_unusable(found)}",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{heading}</title>'
        f"<style>{STYLE}{INSPECTION_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _sources(found: Inspection) -> str:
    planned: Mapping[str, int] = {}
    if found.packing is not None:
        planned = next(f.tokens for f in found.fills if f.sequence_length == found.packing.sequence_length)
    rows = []
    for held in found.held:
        total = held.total
        rows.append(
            (
                safe(held.name),
                f"{total.samples:,}",
                short(total.tokens),
                percent(ratio(total.visual, total.tokens)),
                percent(found.weights[held.name]),
                percent(ratio(planned.get(held.name, 0), sum(planned.values()))),
                f"{held.num_unusable:,}",
            )
        )
    heads = ("source", "samples", "tokens", "visual", "share asked", "share in packs", "cannot be used")
    return table(heads, rows) + note("Shares are of tokens; those in packs are of the planned ones under Packing.")


def _domains(found: Inspection) -> str:
    rows = [
        (
            safe(name),
            safe(held.name),
            f"{amount.samples:,}",
            short(amount.tokens),
            percent(ratio(amount.visual, amount.tokens)),
            short(ratio(amount.tokens, amount.samples)),
        )
        for held in found.held
        for name, amount in held.domains.items()
    ]
    return table(("domain", "source", "samples", "tokens", "visual", "tokens a sample"), rows, left=(0, 1))


def _histogram(held: Holdings) -> str:
    most = max(held.histogram.values(), default=0)
    rows = [
        f"<tr><td class=n>{2**power:,}–{2 ** (power + 1) - 1:,}</td><td class=n>{count:,}</td>"
        f'<td class="bar"><i style="width:{100 * count / most:.1f}%"></i></td></tr>'
        for power, count in held.histogram.items()
    ]
    return f'<p class="note">{safe(held.name)}</p><div class="wide"><table class="hist">{"".join(rows)}</table></div>'


def _fills(found: Inspection) -> str:
    rows = [
        (
            f"{fill.sequence_length:,}",
            percent(fill.share, 2) if fill.packs else "–",
            short(ratio(fill.samples, fill.packs)),
            f"{fill.packs:,}",
            f"{fill.left_out:,}" if fill.packs else safe(fill.problem),
        )
        for fill in found.fills
    ]
    heads = ("sequence length", "filled", "samples a pack", "packs planned", "samples too long")
    return table(heads, rows) + note("Planned as a run plans them, not read.")


def _unusable(found: Inspection) -> str:
    rows = [(safe(key), safe(reason)) for held in found.held for key, reason in held.unusable]
    damage = "".join(f"<p class=warn>{safe(line)}</p>" for held in found.held for line in held.damage)
    return damage + (table(("sample", "reason"), rows, left=(0, 1)) if rows else "<p>None.</p>" if not damage else "")
