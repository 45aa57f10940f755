"""Where a document that is longer than the sequence is divided, and one of its parts.

Planning divides (``divide``) from the index, reading cuts (``cut``): the same bounds, none inside an image or video.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from megatron_qwen3vl.batch import IGNORE
from megatron_qwen3vl.data.positions import mrope_positions
from megatron_qwen3vl.data.render import Tokens
from megatron_qwen3vl.errors import BadSample


def divide(length: int, spans: Sequence[tuple[int, int]], ends: Sequence[int], limit: int) -> list[int] | None:
    """As few parts as possible, of about equal length.

    Equal rather than full: the same number of parts, but no last one of a few tokens that know nothing of what was
    before them; packing fills what full parts would have filled. A cut moves to the end of a text part where one lies
    within half a part of where it should be.

    Args:
        length: tokens of the document.
        spans: begin and end of every image and every whole video with its timestamps, ascending.
        ends: ascending: where a text part ends and something else begins.
        limit: most tokens of a part.

    Returns:
        0, every cut, ``length``; None where a span is longer than ``limit``.
    """
    begins = [begin for begin, _ in spans]

    def span_around(cut: int) -> tuple[int, int] | None:
        number = bisect_left(begins, cut) - 1
        return spans[number] if number >= 0 and cut < spans[number][1] else None

    earliest = [length]  # from where what remains fits into 0, 1, 2, ... parts
    while earliest[-1] > 0:
        cut = max(earliest[-1] - limit, 0)
        around = span_around(cut)
        cut = around[1] if around else cut
        if cut >= earliest[-1]:
            return None
        earliest.append(cut)
    bounds = [0]
    for left in range(len(earliest) - 1, 1, -1):  # parts to come
        start = bounds[-1]
        size = (length - start) // left
        low, high = earliest[left - 1], start + limit
        aim = min(max(start + size, low), high)
        near = bisect_left(ends, aim)
        beside = ends[max(near - 1, 0) : near + 1]
        allowed = [end for end in beside if low <= end <= high and abs(end - aim) <= size / 2]
        if not allowed:
            around = span_around(aim)
            allowed = [cut for cut in around if low <= cut <= high] if around else [aim]
        bounds.append(min(allowed, key=lambda cut: (abs(cut - aim), cut)))
    return [*bounds, length]


def cut(tokens: Tokens, start: int, stop: int, merge: int) -> tuple[Tokens, range]:
    """Tokens ``start`` to ``stop`` of a document as a sample of their own.

    Positions begin at 0 again, and nobody predicts the part's first token. (``tokens.spans`` is of the whole document.)

    Args:
        merge: side of a merged token in patches.

    Returns:
        The part, and which images and videos of the document are in it.

    Raises:
        BadSample: an image or video would be cut.
    """
    begins, ends = tokens.spans.T
    if ((begins < start) & (start < ends) | (begins < stop) & (stop < ends)).any():
        raise BadSample("would be divided inside an image or video; run `data index` again")
    inside = np.flatnonzero((start <= begins) & (begins < stop))
    labels = tokens.labels[start:stop].copy()
    labels[-1] = IGNORE
    visual_index = tokens.visual_index
    visual_index = visual_index[(start <= visual_index) & (visual_index < stop)] - start
    # an image or temporal group begins where its placeholders do
    counts = tokens.grids[:, 1] * tokens.grids[:, 2] // merge**2
    firsts = tokens.visual_index[np.cumsum(counts) - counts]
    mine = (start <= firsts) & (firsts < stop)
    grids = tokens.grids[mine]
    positions = mrope_positions(stop - start, firsts[mine].astype(np.int64) - start, grids, merge)
    part = Tokens(
        tokens.input_ids[start:stop], labels, positions, visual_index, grids, tokens.spans[inside] - start
    )
    return part, range(int(inside[0]), int(inside[-1]) + 1) if len(inside) else range(0)
