"""A pack as HTML, the way the model gets it: tokens one by one, what is predicted, pictures in their places, positions.

Everything is read off the pack itself. Of a long document the beginning and the end are shown.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from megatron_qwen3vl.batch import IGNORE, Pack
from megatron_qwen3vl.config.schema import VisionConfig
from megatron_qwen3vl.data.preview import frames_of
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.report.tables import note, percent, safe

MOST_TOKENS, LAST_TOKENS = 500, 100  # text tokens shown of a document, and how many of these from its end
MOST_PICTURES = 8  # of a document
IMAGE_SIDE, FRAME_SIDE = 448, 160  # pixels of a shown picture, at most
MOST_DOCUMENTS = 8  # of a pack
OPEN_DOCUMENTS = 3
MOST_PARTS = 400  # documents told apart in the strip
COLOURS = 6
_STAMP = re.compile(r"(?:<\d+\.\d seconds>|<\d+:\d\d:\d\d>)$")
_LONGEST_STAMP = 16  # tokens


@dataclass(frozen=True)
class Look:
    """What it takes to read a pack; ``exponent`` of the loss gives the weights."""

    tokenizer: Tokenizer
    vision: VisionConfig
    exponent: float

    @property
    def control(self) -> frozenset[int]:
        t = self.tokenizer
        return frozenset((t.endoftext, t.im_start, t.im_end, t.vision_start, t.vision_end, t.image_pad, t.video_pad))


@dataclass(frozen=True)
class _Visual:
    start: int  # in the pack
    count: int  # tokens
    first_patch: int
    rows: int  # of patches
    columns: int


def show_pack(pack: Pack, title: str, colours: dict[str, int], look: Look) -> str:
    """``colours`` numbers the domains and grows with new ones."""
    for document in pack.documents:
        colours.setdefault(document.domain, len(colours) % COLOURS + 1)
    length, labels = len(pack.input_ids), int((pack.labels != IGNORE).sum())
    weights = [d.num_labels ** (1 - look.exponent) if d.num_labels else 0.0 for d in pack.documents]
    facts = (
        f"{length - pack.num_padding:,} of {length:,} tokens used ({percent(1 - pack.num_padding / length)}), "
        f"{len(pack.documents):,} documents, {len(pack.visual_index):,} visual tokens, {labels:,} predicted tokens"
    )
    chosen = _choose(pack)
    visuals = _visuals(pack, look.vision)
    shown = [
        _document(pack, number, weights[number] / (sum(weights) or 1.0), visuals, colours, look, place < OPEN_DOCUMENTS)
        for place, number in enumerate(chosen)
    ]
    hidden = len(pack.documents) - len(chosen)
    rest = note(f"{hidden:,} more documents of this pack are not shown.") if hidden else ""
    return f"<section><h3>{escape(title)}</h3><p>{facts}.</p>{_strip(pack, colours)}{''.join(shown)}{rest}</section>"


def _choose(pack: Pack) -> list[int]:
    """Documents to show, in their order: one of each domain first, then the first ones."""
    first_of: dict[str, int] = {}
    for number, document in enumerate(pack.documents):
        first_of.setdefault(document.domain, number)
    ordered = [*first_of.values(), *(n for n in range(len(pack.documents)) if n not in first_of.values())]
    return sorted(ordered[:MOST_DOCUMENTS])


def _strip(pack: Pack, colours: dict[str, int]) -> str:
    spans = np.diff(pack.cu_seqlens)[: len(pack.documents)].tolist()
    parts = [
        f'<i class="c{colours[document.domain]}" style="flex:{span}" title="{safe(document.key)}, {span:,} tokens"></i>'
        for document, span in zip(pack.documents[:MOST_PARTS], spans, strict=False)
    ]
    if len(spans) > MOST_PARTS:
        parts.append(f'<i style="flex:{sum(spans[MOST_PARTS:])}" title="more documents"></i>')
    if pack.num_padding:
        parts.append(f'<i class="pad" style="flex:{pack.num_padding}" title="padding, {pack.num_padding:,}"></i>')
    return f'<div class="strip">{"".join(parts)}</div>'


def _visuals(pack: Pack, vision: VisionConfig) -> list[_Visual]:
    found, token, patch = [], 0, 0
    for _, rows, columns in pack.grids.tolist():
        count = rows * columns // vision.spatial_merge_size**2
        found.append(_Visual(int(pack.visual_index[token]), count, patch, rows, columns))
        token, patch = token + count, patch + rows * columns
    return found


def _document(
    pack: Pack, number: int, share: float, visuals: Sequence[_Visual], colours: dict[str, int], look: Look, opened: bool
) -> str:
    start, end = pack.cu_seqlens[number : number + 2].tolist()
    document = pack.documents[number]
    weight = document.num_labels ** (-look.exponent) if document.num_labels else 0.0
    wrong = _wrong_labels(pack, start, end)
    warnings = [f"failed: {document.failure}"] if document.failure is not None else []
    warnings += [f"{wrong} labels are not the next token of this document"] if wrong else []
    facts = (
        f"tokens {start:,}–{end - 1:,} of the pack · {document.num_labels:,} of {end - start:,} predicted · "
        f"weight {weight:.3g} a label, {percent(share)} of the pack's"
    )
    body = _body(pack, start, end, [v for v in visuals if start <= v.start < end], look)
    return (
        f'<details class="doc"{" open" if opened else ""}><summary><b class="c{colours[document.domain]}">'
        f"{safe(document.domain)}</b> {safe(document.key)}</summary>"
        f'<p class="note">{facts}</p>{"".join(f"<p class=warn>{safe(line)}</p>" for line in warnings)}'
        f'<div class="t">{body}</div></details>'
    )


def _wrong_labels(pack: Pack, start: int, end: int) -> int:
    """Labels that do not say the next token of the same document."""
    labels, following = pack.labels[start:end], np.append(pack.input_ids[start + 1 : end], IGNORE)
    return int(((labels != IGNORE) & (labels != following)).sum())


def _body(pack: Pack, start: int, end: int, visuals: Sequence[_Visual], look: Look) -> str:
    """Text and pictures in turn. What is past the limits is counted where it is left out."""
    parts: list[str] = []
    texts = end - start - sum(visual.count for visual in visuals)
    tail = end - LAST_TOKENS if texts > MOST_TOKENS else end
    budget = MOST_TOKENS - (end - tail)
    place, shown, left_out = start, 0, [0, 0]

    def close_gap() -> None:
        if any(left_out):
            parts.append(f'<p class="gap">… {left_out[0]:,} text tokens and {left_out[1]:,} pictures not shown …</p>')
            left_out[:] = [0, 0]

    for visual in [*visuals, None]:
        until = visual.start if visual is not None else end
        head = min(until, place + budget)
        if head > place:
            close_gap()
            parts.append(_text(pack, place, head, start, look))
            budget -= head - place
        last = max(head, min(tail, until))
        left_out[0] += last - head
        if until > last:
            close_gap()
            parts.append(_text(pack, last, until, start, look))
        place = until
        if visual is not None:
            place += visual.count
            if shown < MOST_PICTURES and (budget > 0 or place > tail):
                close_gap()
                parts.append(_picture(pack, visual, start, look))
                shown += 1
            else:
                left_out[1] += 1
    close_gap()
    return "".join(parts)


def _text(pack: Pack, first: int, last: int, start: int, look: Look) -> str:
    """Tokens as they are spelt; several together where only together they make a character."""
    parts = [f'<sup title="position of the next token">{pack.positions[0, first]:,}</sup>']
    place = first
    while place < last:
        stop = place + 1
        text = look.tokenizer.decode(pack.input_ids[place:stop].tolist())
        while "�" in text and stop < min(last, place + 6):
            stop += 1
            text = look.tokenizer.decode(pack.input_ids[place:stop].tolist())
        predicted = place > start and pack.labels[place - 1] != IGNORE
        control = int(pack.input_ids[place]) in look.control
        kind = " ".join(name for name, holds in (("p", predicted), ("k", control)) if holds)
        ids = " ".join(map(str, pack.input_ids[place:stop].tolist()))
        shown = escape(text).replace("\n", "↵\n").replace("\t", "→\t")
        parts.append(f'<i class="{kind}" title="{ids}">{shown}</i>' if kind else f'<i title="{ids}">{shown}</i>')
        place = stop
    return "".join(parts)


def _picture(pack: Pack, visual: _Visual, start: int, look: Look) -> str:
    span = slice(visual.start, visual.start + visual.count)
    video = int(pack.input_ids[visual.start]) == look.tokenizer.video_pad
    before = pack.input_ids[max(start, visual.start - 1 - _LONGEST_STAMP) : visual.start - 1].tolist()
    stamp = _STAMP.search(look.tokenizer.decode(before)) if video else None
    merge = look.vision.spatial_merge_size
    facts = [f"{visual.rows // merge} × {visual.columns // merge} tokens"]
    facts += [f"{name} {_range(axis)}" for name, axis in zip("thw", pack.positions[:, span], strict=True)]
    if video:
        facts.insert(0, f"two frames, {stamp.group() if stamp else 'no stamp'}")
    assert pack.patches is not None, "packs to be looked at are read with their pixels"
    patches = pack.patches[visual.first_patch : visual.first_patch + visual.rows * visual.columns]
    frames = frames_of(patches, visual.rows, visual.columns, look.vision)
    pixels = [_image(frame, FRAME_SIDE) for frame in frames] if video else [_image(frames[0], IMAGE_SIDE)]
    return f"<figure>{''.join(pixels)}<figcaption>{escape(' · '.join(facts))}</figcaption></figure>"


def _range(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _image(pixels: np.ndarray, side: int) -> str:
    image = Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    image.thumbnail((side, side))
    data = io.BytesIO()
    small = max(image.size) <= 96
    kind = "png" if small else "jpeg"
    image.save(data, kind, quality=80)  # PNG has none
    content = base64.b64encode(data.getvalue()).decode()
    shown = max(1, 96 // max(image.size)) if small else 1  # a small picture is enlarged
    size = f'width="{image.size[0] * shown}" height="{image.size[1] * shown}"'
    return f'<img {size} alt="{width} x {height} pixels" src="data:image/{kind};base64,{content}">'


def shown_domains(packs: Sequence[Pack]) -> set[str]:
    """The domains of the documents that ``show_pack`` shows."""
    return {pack.documents[number].domain for pack in packs for number in _choose(pack)}
