"""A source's lengths in five numbers: what a run has to know of all of them before it plans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_AT_ONCE = 1 << 20  # lengths: they may be mapped from a file larger than the memory


@dataclass(frozen=True)
class Survey:
    """``unusable``: rows without a length, ``first_unusable`` the first of them, -1 where there is none. ``too_long``:
    rows longer than the sequence. ``tokens`` of all rows, ``longest`` of those that fit (0: none does)."""

    unusable: int = 0
    first_unusable: int = -1
    too_long: int = 0
    tokens: int = 0
    longest: int = 0

    @property
    def left_out(self) -> int:
        return self.unusable + self.too_long

    def then(self, other: Survey, rows: int) -> Survey:
        """Of these rows, ``rows`` of them, and the other's behind them."""
        first = self.first_unusable
        if first < 0 <= other.first_unusable:
            first = rows + other.first_unusable
        return Survey(
            self.unusable + other.unusable,
            first,
            self.too_long + other.too_long,
            self.tokens + other.tokens,
            max(self.longest, other.longest),
        )


def survey_of(lengths: np.ndarray, sequence_length: int | None) -> Survey:
    """``lengths`` int [n]; None: nothing is too long."""
    found = Survey()
    for start in range(0, len(lengths), _AT_ONCE):
        found = found.then(_survey(np.asarray(lengths[start : start + _AT_ONCE]), sequence_length), start)
    return found


def _survey(lengths: np.ndarray, sequence_length: int | None) -> Survey:
    unusable = np.flatnonzero(lengths <= 0)
    fitting = lengths if sequence_length is None else lengths[lengths <= sequence_length]
    return Survey(
        unusable=len(unusable),
        first_unusable=int(unusable[0]) if len(unusable) else -1,
        too_long=len(lengths) - len(fitting),
        tokens=int(lengths.clip(min=0).sum(dtype=np.int64)),
        longest=max(0, int(fitting.max(initial=0))),
    )
