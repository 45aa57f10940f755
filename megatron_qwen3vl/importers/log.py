"""What an import has finished, on disk: where an interrupted one goes on, and what it left out.

``OUT/import/SPLIT.jsonl`` has a line (``Mark``) for each whole shard, ``OUT/import/SPLIT_left_out.jsonl`` one for each
entry that could not be used and for each part of a sample that was left out of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Mark:
    """Totals of a split after a whole shard.

    ``entries`` of the source are dealt with. ``size``: of this shard, ``num_bytes``: of all so far. ``named_bytes``: of
    the file that names what was left out. ``unwanted``: filter -> entries. ``complete``: nothing comes after it.
    """

    shards: int = 0
    samples: int = 0
    num_bytes: int = 0
    size: int = 0
    entries: int = 0
    left_out: int = 0
    notes: int = 0
    named_bytes: int = 0
    unwanted: Mapping[str, int] = field(default_factory=dict)
    complete: bool = False


def shard_name(number: int) -> str:
    return f"{number:05d}.tar"


class SplitLog:
    """The log of one split. Opening it goes back to the last mark whose shards are all there.

    Raises:
        OSError: the log cannot be read or written.
    """

    def __init__(self, logs: Path, split: str, shards: Path) -> None:
        self._path, self._named_path = logs / f"{split}.jsonl", logs / f"{split}_left_out.jsonl"
        marks = list(_whole(self._path, shards))
        self.mark = marks[-1] if marks else Mark()
        with open(self._path, "wb") as file:
            file.writelines(_line(asdict(mark)) for mark in marks)
        with open(self._named_path, "ab") as file:
            file.truncate(self.mark.named_bytes)
        self._unwanted = Counter(self.mark.unwanted)
        self._left_out, self._notes = self.mark.left_out, self.mark.notes
        self._marks: BinaryIO = open(self._path, "ab", buffering=0)  # noqa: SIM115
        self._named: BinaryIO = open(self._named_path, "ab")  # noqa: SIM115

    def close(self) -> None:
        self._marks.close()
        self._named.close()

    def leave_out(self, key: str, reason: str) -> None:
        self._left_out += 1
        self._named.write(_line({"key": key, "left_out": reason}))

    def note(self, key: str, note: str) -> None:
        self._notes += 1
        self._named.write(_line({"key": key, "note": note}))

    def unwanted(self, key_of_settings: str) -> None:
        self._unwanted[key_of_settings] += 1

    def shard_done(self, samples: int, size: int, entries: int) -> None:
        mark = replace(
            self.mark,
            shards=self.mark.shards + 1,
            samples=self.mark.samples + samples,
            num_bytes=self.mark.num_bytes + size,
            size=size,
        )
        self._add(mark, entries)

    def all_done(self, entries: int) -> None:
        self._add(replace(self.mark, size=0, complete=True), entries)

    def _add(self, mark: Mark, entries: int) -> None:
        self._named.flush()  # before the mark that counts it
        self.mark = replace(
            mark,
            entries=entries,
            left_out=self._left_out,
            notes=self._notes,
            named_bytes=self._named.tell(),
            unwanted=dict(sorted(self._unwanted.items())),
        )
        self._marks.write(_line(asdict(self.mark)))

    def first_named(self, count: int) -> list[str]:
        """The first lines of what was left out, to be shown."""
        found = []
        with open(self._named_path, "rb") as file:
            for line, _ in zip(file, range(count), strict=False):
                row = json.loads(line)
                found.append(f"{row['key']}: {row.get('left_out') or row['note']}")
        return found


def _line(row: Mapping[str, object]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _whole(path: Path, shards: Path) -> Iterator[Mark]:
    """The marks up to the first that is cut off, or whose shard is not there as it was written."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            try:
                mark = Mark(**json.loads(line))
                good = line.endswith(b"\n")
                if not mark.complete:
                    good = good and (shards / shard_name(mark.shards - 1)).stat().st_size == mark.size
            except (ValueError, TypeError, OSError):
                return
            if not good:
                return
            yield mark
