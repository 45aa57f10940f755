"""What a video file says of itself before libav reads it: its container, and whether an MP4's counts can be true.

libav would guess among some 350 formats, playlists and network sessions among them; here the first bytes decide among
eight. It also makes an entry of 24 bytes for every sample that an MP4 claims: a file of 3 kB could so take gigabytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from megatron_qwen3vl.errors import BadSample

_MOV_BOXES = (
    b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"moof", b"uuid", b"udta",
)  # fmt: skip
_MAGIC = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"OggS", "ogg"),
    (b"FLV\x01", "flv"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"\x00\x00\x01\xba", "mpeg"),
)
_SYNC, _TS_PACKETS = 0x47, ((0, 188), (4, 192), (0, 204))
_COUNTED = re.compile(rb"stsz|stz2|trun|cmov")


def container_of(data: bytes) -> str:
    """libav's name of the container. Raises BadSample for anything that is not one of these."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] in (b"AVI ", b"AVIX"):
        return "avi"
    if data[4:8] in _MOV_BOXES:
        return "mov"
    for first, size in _TS_PACKETS:
        if len(data) > first + size and data[first] == data[first + size] == _SYNC:
            return "mpegts"
    raise BadSample("video is not an MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, Ogg or ASF file")


def check_claims(container: str, data: bytes) -> None:
    """Raises BadSample for an MP4 that claims more samples than it has bytes, or whose header is compressed."""
    if container != "mov":
        return
    claimed = 0
    for start, end in _outside_media(data):
        for found in _COUNTED.finditer(data, start, end):
            at, name = found.end(), found.group()
            if name == b"cmov":
                raise BadSample("video has a compressed header; remux it")
            if at + (8 if name == b"trun" else 12) > len(data):
                break
            # behind the flags: of a trun the count; of the others the size of a sample, if all have one, and the count
            (number,) = struct.unpack_from(">I", data, at + 4)
            if name != b"trun":
                size, (number,) = number, struct.unpack_from(">I", data, at + 8)
                number *= max(size, 1) if name == b"stsz" else 1
            claimed += number
        if claimed > len(data):
            raise BadSample(f"video claims {claimed} bytes of samples, but has {len(data)}")


def _outside_media(data: bytes) -> Iterator[tuple[int, int]]:
    """What lies between the top-level ``mdat`` boxes, [start, end) each."""
    at = first = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        if size == 1 and at + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, at + 8)
        if size < 8:
            break
        if name == b"mdat":
            yield first, at
            first = at + size
        at += size
    if first < len(data):
        yield first, len(data)
