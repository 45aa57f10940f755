"""Where the files of a tar lie, from its headers alone, whatever these say.

The standard library's walk believes a header: a size below zero sends it round in circles, an extended header that
claims 20 GB is read whole, a chain of extended headers recurses, and one of its regular expressions is quadratic
(Python 3.11.7). Here only its parser of a single header block is used, which checks the checksum. Every step leads
forward in the file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from megatron_qwen3vl.data.limits import MAX_EXTENDED_BYTES

_BLOCK = 512
_NO_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class _Bad(Exception):
    """A header that cannot be what it says."""


def tar_members(file: BinaryIO, total: int, name_of_tar: str, damage: list[str]) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every regular file, in order; links, devices, folders and sparse files are passed over.

    Args:
        total: bytes of the file.
        damage: gets a line for what lies between an unreadable header and the next good one.
    """
    start = 0
    said: dict[str, str] = {}  # what extended headers say of the next file
    while True:
        file.seek(start)
        block = file.read(_BLOCK)
        if block == bytes(_BLOCK):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            data = start + _BLOCK
            if info.type in _EXTENDED:
                said |= _read_extended(file, info)
                start = data + _whole_blocks(info.size)
                continue
            size = int(said.get("size", info.size))
            if size < 0:
                raise _Bad
            if info.type == tarfile.GNUTYPE_SPARSE:
                data = _behind_sparse_map(file, block, data)
        except (tarfile.TarError, ValueError, ArithmeticError, _Bad):
            said = {}
            good = _next_header(file, start + _BLOCK)
            if good is None:
                what = f"bytes {start} to {total} cannot be read"
                missing_end = f"ends at byte {total} without a tar's closing blocks; samples may be missing"
                damage.append(f"{name_of_tar}: {what if block else missing_end}")
                return
            damage.append(f"{name_of_tar}: bytes {start} to {good} cannot be read")
            start = good
            continue
        name = said.get("path", info.name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if info.type in _NO_DATA:
            start, said = data, {}
            continue
        if data + size > total:
            damage.append(f"{name_of_tar}: cut off inside {name} at byte {total}")
            return
        if info.type in _FILES and "sparse" not in said:
            yield name, data, size
        start, said = data + _whole_blocks(size), {}


def _whole_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _read_extended(file: BinaryIO, info: tarfile.TarInfo) -> dict[str, str]:
    """What a pax header or a GNU long name says of the next file; a global header says nothing."""
    if not 0 <= info.size <= MAX_EXTENDED_BYTES:
        raise _Bad
    data = file.read(info.size)
    if len(data) < info.size:
        raise _Bad
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    return _pax_records(data) if info.type in _PAX else {}


def _pax_records(data: bytes) -> dict[str, str]:
    """The records that matter here: b"LENGTH NAME=VALUE\\n", the length counting the whole record."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > at else b""
        end = at + int(digits) if digits.isdigit() else 0
        if not at < space < end <= len(data):
            raise _Bad
        name, _, value = data[space + 1 : end - 1].partition(b"=")
        if name == b"path":
            found["path"] = value.decode("utf-8", "surrogateescape").rstrip("/")
        elif name == b"size":
            if not value.isdigit() or len(value) > 20:
                raise _Bad
            found["size"] = value.decode()
        elif name.startswith(b"GNU.sparse."):
            found["sparse"] = ""
        at = end
    return found


def _behind_sparse_map(file: BinaryIO, header: bytes, data: int) -> int:
    """Where the data of an old GNU sparse file begin: its map may go on in blocks behind the header."""
    goes_on = header[482]
    while goes_on:
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise _Bad
        goes_on = block[504]
        data += _BLOCK
    return data


def _next_header(file: BinaryIO, start: int) -> int | None:
    """Where the next block with the checksum of a tar header is, from ``start`` on."""
    file.seek(start)
    while len(block := file.read(_BLOCK)) == _BLOCK:
        try:
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError:
            start += _BLOCK
        else:
            return start
    return None
