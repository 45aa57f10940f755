"""Which frames of a video file the model sees: ``fps`` frames a second, uniform in time, as many as its room allows.

For a constant rate these are the frames of transformers' ``Qwen3VLVideoProcessor.sample_frames``: floor(duration x fps)
of them, at least 4 and at most the cap, spread evenly from the first to the last. With a variable rate each is the one
nearest in time; where nothing changes for long, no frame is taken twice.

The cap: ``max_frames``, else as many frames as fit into 3/4 of the stage's sequence length (shared by the video files
of a sample), else, without a stage, transformers' 768. So a long video has fewer frames a second in a short stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LEAST_FRAMES = 4  # transformers' min_frames
MOST_FRAMES = 768  # transformers' max_frames
_SHARE = 0.75  # of the sequence length; the rest is for the sample's text
_STAMP = 12  # positions allowed for a timestamp


@dataclass(frozen=True)
class Sampling:
    """A source's ``fps`` and ``max_frames``, and the stage's sequence length; None where there is none."""

    fps: float
    max_frames: int | None
    sequence_length: int | None

    def choose(self, times: np.ndarray, group: int, num_files: int, positions: Callable[[int], int]) -> np.ndarray:
        """The places of the chosen frames, ascending.

        Args:
            times: seconds of all frames, ascending.
            group: frames of a temporal group.
            num_files: video files of the sample, which share its room.
            positions: how many positions the groups of n frames take without timestamps; grows with n.
        """
        wanted = min(max(wanted_frames(times, self.fps), LEAST_FRAMES), len(times))
        return spread(times, min(wanted, self._cap(wanted, group, num_files, positions)))

    def _cap(self, wanted: int, group: int, num_files: int, positions: Callable[[int], int]) -> int:
        if self.max_frames is not None:
            return self.max_frames
        if self.sequence_length is None:
            return MOST_FRAMES
        room = _SHARE * self.sequence_length / num_files

        def fits(groups: int) -> bool:
            return positions(groups * group) + groups * _STAMP <= room

        # the largest number of whole groups that fits, between least and most
        least, most = -(-LEAST_FRAMES // group), -(-wanted // group)
        if least >= most or fits(most):
            return max(most, least) * group
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if fits(middle) else (least, middle)
        return least * group


def wanted_frames(times: np.ndarray, fps: float) -> int:
    """floor(duration x fps); the last frame lasts as long as the others do on average."""
    if len(times) < 2:
        return len(times)
    duration = float(times[-1] - times[0]) * len(times) / (len(times) - 1)
    return int(duration * fps + 1e-6)  # 10 s at 2 fps are 20 frames, whatever the rounding of the times


def spread(times: np.ndarray, count: int) -> np.ndarray:
    """Places of at most ``count`` frames: those nearest to ``count`` instants, uniform from the first to the last."""
    if len(times) < 2:
        return np.arange(len(times))
    instants = np.linspace(times[0], times[-1], count)
    after = np.searchsorted(times, instants).clip(1, len(times) - 1)
    nearer_before = instants - times[after - 1] <= times[after] - instants
    return np.unique(np.where(nearer_before, after - 1, after))
