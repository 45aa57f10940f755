"""How context parallelism shares out a packed batch: which rank holds which tokens, and visual tokens' ways. Pure.

Each document is cut into 2 R nearly equal pieces; rank r holds pieces r and 2 R - 1 - r (a zigzag). In causal attention
a late token costs more than an early one, and this way every rank gets as much of both. Documents keep their lengths:
what does not divide is spread so that every rank holds exactly T / R tokens of the batch.

Shapes: R ranks, T tokens, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Piece:
    """Tokens ``start`` to ``stop`` of the packed axis, of the document that begins at ``document``."""

    document: int
    start: int
    stop: int


def cut_documents(lengths: Sequence[int], num_ranks: int) -> list[list[Piece]]:
    """The pieces of each rank, ascending, of documents that lie one after another; padding counts as a document.

    Empty pieces are left out. Raises ValueError when the tokens do not divide among the ranks.
    """
    if sum(lengths) % num_ranks:
        raise ValueError(f"{sum(lengths)} tokens cannot be shared equally by {num_ranks} ranks")
    ranks: list[list[Piece]] = [[] for _ in range(num_ranks)]
    held = [0] * num_ranks
    begin = 0
    for length in lengths:
        shares = _shares(length, held)
        held = [total + share for total, share in zip(held, shares, strict=True)]
        fronts = [(rank, (share + 1) // 2) for rank, share in enumerate(shares)]
        backs = [(rank, share // 2) for rank, share in enumerate(shares)]
        start = begin
        for rank, size in (*fronts, *reversed(backs)):
            if size:
                ranks[rank].append(Piece(begin, start, start + size))
            start += size
        begin += length
    return ranks


def _shares(length: int, held: Sequence[int]) -> list[int]:
    """A document's tokens by rank: equal, and what is left over goes to those that hold least so far.

    Totals then never differ by more than one, and are equal wherever they can be.
    """
    whole, left = divmod(length, len(held))
    poorest = sorted(range(len(held)), key=lambda rank: (held[rank], rank))[:left]
    return [whole + (rank in poorest) for rank in range(len(held))]


def token_index(pieces: Sequence[Piece]) -> np.ndarray:
    """int64: the tokens of the pieces by their place in the whole batch."""
    return np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])


@dataclass(frozen=True)
class Routes:
    """How visual tokens travel from the ranks that computed them to those that hold their positions, for one rank.

    ``leaving`` int64: the rows computed here, in the order they are sent (by destination). ``sent`` and ``received``
    [R] count rows by rank. ``arriving`` int64: the rows received, in the order of the positions held here.
    """

    leaving: np.ndarray
    sent: tuple[int, ...]
    received: tuple[int, ...]
    arriving: np.ndarray


def route_features(maker: np.ndarray, holder: np.ndarray, rank: int, num_ranks: int) -> Routes:
    """``maker`` and ``holder`` [V]: the rank that computes each visual token and the one that holds its position.

    Both ranks keep visual tokens in the order given here, that of the batch or of several batches in turn.
    """
    destinations = holder[maker == rank]
    sources = maker[holder == rank]
    return Routes(
        leaving=np.argsort(destinations, kind="stable"),
        sent=tuple(np.bincount(destinations, minlength=num_ranks).tolist()),
        received=tuple(np.bincount(sources, minlength=num_ranks).tolist()),
        arriving=np.argsort(np.argsort(sources, kind="stable"), kind="stable"),
    )
