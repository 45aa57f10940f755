"""Bad samples: named in quarantine.jsonl, counted against ``data.max_bad_rate``.

A line is {"source", "key", "reason", "stage", "step"}. Samples that failed keep their place in a pack and count as bad;
samples that no pack can hold are named, but were never read and do not count.

The counts are of the global batch and belong into the checkpoint (`Quarantine.state`), as does the length of the file,
so that a resumed run counts and names each use of a sample once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_qwen3vl.batch import Document
from megatron_qwen3vl.data.lanes import LeftOut, SampleSource
from megatron_qwen3vl.errors import UserError

_FEWEST_READ = 100  # the rate is not judged by fewer samples: one bad sample of the first ten would stop a run
_REASONS_KEPT = 3  # of each source, the latest


@dataclass(frozen=True)
class Quarantined:
    source: str
    key: str
    reason: str
    stage: str
    step: int


def failed_documents(documents: Iterable[Document], stage: str, step: int) -> list[Quarantined]:
    """The failed ones; their source is the first part of the key (SOURCE/SHARD/KEY)."""
    return [
        Quarantined(document.key.split("/", 1)[0], document.key, document.failure, stage, step)
        for document in documents
        if document.failure is not None
    ]


def left_out_samples(left_out: Iterable[LeftOut], stage: str, step: int) -> list[Quarantined]:
    return [Quarantined(sample.source, sample.key, sample.reason, stage, step) for sample in left_out]


def lost_parts(source: str, damage: Iterable[str], stage: str, step: int) -> list[Quarantined]:
    """What could not be read of a source's shards; the samples in it have no key."""
    return [Quarantined(source, "", line, stage, step) for line in damage]


def refuse_bad_sources(sources: Sequence[SampleSource], max_bad_rate: float, sequence_length: int) -> None:
    """What the index already knows to be bad counts like what fails later, over the whole source.

    Raises UserError naming every source with more than ``max_bad_rate`` unusable samples (of at least 100).
    """
    problems = []
    for source in sources:
        survey = source.survey(sequence_length)
        count, first = survey.unusable, survey.first_unusable
        if count > max_bad_rate * max(len(source), _FEWEST_READ):
            problems.append(
                f"source {source.name}: {count} of {len(source)} samples cannot be used, more than "
                f"data.max_bad_rate={max_bad_rate:g}; the first is {source.key(first)}: {source.reason(first)}"
            )
    if problems:
        raise UserError(problems)


class Quarantine:
    """The counts of one stage. Feed it the same global figures on every rank and all stop at the same step."""

    def __init__(self, max_bad_rate: float, state: Mapping[str, Any] | None = None) -> None:
        self._max_bad_rate = max_bad_rate
        self._read: int = state["read"] if state else 0
        self._failed: dict[str, int] = dict(state["failed"]) if state else {}
        self._reasons: dict[str, list[str]] = {k: list(v) for k, v in state["reasons"].items()} if state else {}

    def add(self, num_read: int, failed: Sequence[Quarantined]) -> None:
        """A step's global figures: samples read, and those of them that failed.

        Raises UserError, naming the worst source and its latest reasons, once more than ``max_bad_rate`` of the samples
        read so far (of at least 100) have failed.
        """
        self._read += num_read
        for sample in failed:
            self._failed[sample.source] = self._failed.get(sample.source, 0) + 1
            reasons = self._reasons.setdefault(sample.source, [])
            reasons.append(f"{sample.key}: {sample.reason}")
            del reasons[:-_REASONS_KEPT]
        num_failed = sum(self._failed.values())
        if num_failed <= self._max_bad_rate * max(self._read, _FEWEST_READ):
            return
        worst = max(self._failed, key=lambda source: self._failed[source])
        raise UserError(
            [
                f"data.max_bad_rate: {num_failed} of {self._read} samples could not be used, more than "
                f"{self._max_bad_rate:g}; mend the source or raise the limit (all are named in quarantine.jsonl)",
                f"source {worst} has {self._failed[worst]} of them, lately:",
                *(" ".join(reason.split())[:300] for reason in self._reasons[worst]),
            ]
        )

    def state(self) -> dict[str, Any]:
        """JSON-able, bounded by the number of sources."""
        reasons = {source: list(texts) for source, texts in self._reasons.items()}
        return {"read": self._read, "failed": dict(self._failed), "reasons": reasons}
