"""The text that stands before each group of video frames.

``seconds`` is what transformers' Qwen3VLProcessor writes (``replace_video_token``, ``_calculate_timestamps``);
``clock`` is the HMS form of the Qwen3-VL report (arXiv 2511.21631, section 2.3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def frame_times(num_frames: int, fps: float) -> list[float]:
    """Seconds of each frame of a list sampled at ``fps``."""
    return [index / fps for index in range(num_frames)]


def group_times(times: Sequence[float], group: int) -> list[float]:
    """Seconds of each temporal group: the mean of its first and last frame; the last frame is repeated to fill."""
    filled = [*times, *[times[-1]] * (-len(times) % group)]
    return [(filled[start] + filled[start + group - 1]) / 2 for start in range(0, len(filled), group)]


def stamp(seconds: float, style: str) -> str:
    """``<3.0 seconds>`` or ``<00:00:03>`` (floored)."""
    if style == "seconds":
        return f"<{seconds:.1f} seconds>"
    whole = int(seconds)
    return f"<{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}>"


def choose_style(style: str, key: str) -> str:
    """``mixed`` becomes seconds or clock by a hash of the sample's key: the same in every process and on every run."""
    if style != "mixed":
        return style
    return ("seconds", "clock")[hashlib.sha256(key.encode()).digest()[0] & 1]


def to_runs(ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] as runs of equal steps from one to the next (the first is from 0): a constant rate takes two.

    Returns:
        Steps, int64, and how often each is taken, int32.
    """
    steps = np.diff(ticks, prepend=0)
    begins = np.flatnonzero(np.diff(steps, prepend=~steps[:1]))
    return steps[begins], np.diff(begins, append=len(steps)).astype(np.int32)


def from_runs(steps: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The inverse of ``to_runs``."""
    return np.cumsum(np.repeat(steps, counts))
