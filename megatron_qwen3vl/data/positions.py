"""MRoPE positions of one document. Pure; equal to transformers' ``Qwen3VLModel.get_rope_index``.

Text counts up on all three axes. An image or temporal group that begins at position p has (p, p + row, p + column) on
its merged grid, and the text after it goes on at p + max(rows, columns).
"""

from __future__ import annotations

import numpy as np


def mrope_positions(num_tokens: int, starts: np.ndarray, grids: np.ndarray, merge: int) -> np.ndarray:
    """Positions of a document that begins at 0.

    Args:
        num_tokens: n.
        starts: int [I], ascending: index of the first placeholder of each image or temporal group.
        grids: int [I, 3]: its (t = 1, h, w) in patches.
        merge: side of a merged token in patches.

    Returns:
        int32 [3, n]: time, height, width.
    """
    rows, columns = grids[:, 1] // merge, grids[:, 2] // merge
    # A visual span of V tokens moves the position by max(rows, columns) only; what follows lags by the difference.
    saved = rows * columns - np.maximum(rows, columns)
    lag = np.zeros(num_tokens + 1, np.int64)
    np.add.at(lag, starts + rows * columns, saved)
    text = np.arange(num_tokens, dtype=np.int64) - np.cumsum(lag)[:num_tokens]
    positions = np.stack([text, text, text])
    for start, height, width in zip(starts.tolist(), rows.tolist(), columns.tolist(), strict=True):
        span = slice(start, start + height * width)
        first = text[start]
        positions[0, span] = first
        positions[1, span] = first + np.repeat(np.arange(height), width)
        positions[2, span] = first + np.tile(np.arange(width), height)
    return positions.astype(np.int32)
