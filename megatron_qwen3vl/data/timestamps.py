"""The text that stands before each group of video frames.

``seconds`` is what transformers' Qwen3VLProcessor writes (``replace_video_token``, ``_calculate_timestamps``);
``clock`` is the HMS form of the Qwen3-VL report (arXiv 2511.21631, section 2.3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


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
