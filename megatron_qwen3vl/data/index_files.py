"""Which index file is a shard's, and whether it is of the state that the shard is in now.

The index of a shard behind an address is kept in a local folder, by the shard's address; a run downloads it from beside
the shard, once. It never makes one there: that would read the shards.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_qwen3vl.data.index import EARLIER, FOREIGN, MAGIC, ShardIndex, parse_index, read_index, write_index
from megatron_qwen3vl.data.places import CONTENT, TAG
from megatron_qwen3vl.data.remote import RemotePlace
from megatron_qwen3vl.data.shards import Shard, take_stamp
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.errors import BadSample, UserError

_AT_ONCE = 32  # downloads of one process
_BLOCK = 512  # of a tar


def stored_path(shard: Shard, tokenizer: Tokenizer, folder: Path) -> Path:
    """The index of a shard in a folder of indexes."""
    place = hashlib.sha256(os.fsencode(shard.place.identity)).hexdigest()
    return folder / f"{place[:32]}-{tokenizer.fingerprint[:16]}.idx"


def is_of(index: ShardIndex, shard: Shard) -> bool:
    """Whether the shard is in the state that was indexed.

    An index that came along with a copy of its shard, from a disk to a server or back, knows another kind of stamp than
    the copy has. There the size decides, and the header of the last file, which is where it was only if all before it
    have their sizes.

    Raises:
        UserError: the shard cannot be read.
    """
    if index.stamp.of == (TAG if isinstance(shard.place, RemotePlace) else CONTENT):
        return take_stamp(shard, index.stamp).digest == index.stamp.digest
    try:
        return shard.place.size() == index.stamp.size and _last_header_agrees(index, shard)
    except OSError as error:
        raise UserError(f"shards: {error.strerror}") from None


def _last_header_agrees(index: ShardIndex, shard: Shard) -> bool:
    offsets = index.arrays["member_offsets"]
    if not len(offsets):
        return True
    last = int(offsets.argmax())
    try:
        header = tarfile.TarInfo.frombuf(
            shard.place.read(int(offsets[last]) - _BLOCK, _BLOCK), "utf-8", "surrogateescape"
        )
    except (BadSample, tarfile.TarError, ValueError):
        return False
    return header.size == int(index.arrays["member_sizes"][last])


def get_remote_index(shard: Shard, tokenizer: Tokenizer, folder: Path | None) -> ShardIndex:
    """The index of a shard behind an address: from ``folder``, else from beside it (then kept in ``folder``).

    Raises:
        UserError: there is none of this state of the shard and for this tokenizer.
    """
    stale = False
    if folder is not None:
        try:
            index = read_index(stored_path(shard, tokenizer, folder))
            if index.has_counts(tokenizer) and is_of(index, shard):
                return index
            stale = True
        except UserError:
            pass  # not there yet, or damaged
    index = _from_beside(shard, tokenizer, stale)
    if folder is None:
        return index
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_index(index, stored_path(shard, tokenizer, folder))
    except OSError as error:
        raise UserError(f"cannot keep indexes in {folder}: {error.strerror}") from None
    return read_index(stored_path(shard, tokenizer, folder))


def bring_indexes(shards: Sequence[Shard], tokenizer: Tokenizer, folder: Path) -> None:
    """Download many indexes at once, so that ``get_remote_index`` finds them. What is missing, it will say."""

    def bring(shard: Shard) -> None:
        with suppress(UserError):
            get_remote_index(shard, tokenizer, folder)

    remote = [shard for shard in shards if isinstance(shard.place, RemotePlace)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(bring, remote))


def _from_beside(shard: Shard, tokenizer: Tokenizer, stale: bool) -> ShardIndex:
    name, beside = shard.place.name, shard.beside
    assert isinstance(beside, RemotePlace)
    mend = f"`data index {name} --to FOLDER` and storage.indexes=FOLDER"
    try:
        data = beside.content()
    except FileNotFoundError:
        if stale:
            raise UserError(_changed(name)) from None
        raise UserError(f"{name} has no index ({beside.name} does not exist); run {mend}") from None
    except OSError as error:
        raise UserError(f"shards: {error.strerror}") from None
    if data[: len(MAGIC)] == FOREIGN:
        raise UserError(f"{name} has no index ({beside.name} is megatron-energon's); run {mend}")
    if data[: len(MAGIC)] in EARLIER:
        raise UserError(f"{beside.name} was written by an earlier version; run {mend}")
    index = parse_index(np.frombuffer(data, np.uint8), beside.name)
    if not is_of(index, shard):
        raise UserError(_changed(name))
    if not index.has_counts(tokenizer):
        raise UserError(f"{beside.name} has not been counted with this tokenizer; run {mend}")
    # from now on it is recognised by the tag that its server gives it
    return replace(index, stamp=take_stamp(shard))


def _changed(name: str) -> str:
    return (
        f"{name} has changed since it was indexed; run `data index {name}` again (with the same --to) to use it as it "
        "is now, or restore the shard"
    )
