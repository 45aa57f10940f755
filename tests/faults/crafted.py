"""Tars as an attacker makes them: each says something that a careless reader believes."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib

import numpy as np
from PIL import Image

from tests.unit.data.video_files import encode

_BLOCK = 512
END = bytes(2 * _BLOCK)
SEEN = "an attacker's code ran"


class Payload:
    """Unpickling it prints."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, (SEEN,)


def header(name: bytes, size: int, kind: bytes = b"0", link: bytes = b"") -> bytes:
    """A header block with a right checksum; a size that octal digits cannot write is binary, below zero too."""
    block = bytearray(_BLOCK)
    block[: len(name)] = name
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    fits = 0 <= size < 8**11
    marked = (b"\x80" if size >= 0 else b"\xff") + (size % 2**88).to_bytes(11, "big")
    block[124:136] = b"%011o\0" % size if fits else marked
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes, kind: bytes = b"0") -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % _BLOCK)


def pax(*records: bytes) -> bytes:
    return member(b"pax", b"".join(records), b"x")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, pixels: bytes = b"") -> bytes:
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return start + b"".join(chunks) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """A picture of 64 x 64 whose header says another size."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    start = data.find(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(buffer, "WEBP", lossless=True)
    data = bytearray(buffer.getvalue())
    start = data.find(b"VP8L") + 9
    data[start : start + 4] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)


def claiming_mp4(box: bytes, offset: int, layout: str, *values: int) -> bytes:
    """A video of 24 frames with some numbers of one box overwritten."""
    data = bytearray(encode(24))
    struct.pack_into(layout, data, data.find(box) + 4 + offset, *values)
    return bytes(data)


def trun_mp4(count: int) -> bytes:
    """A fragment that claims ``count`` samples without a byte for any of them."""
    trun = struct.pack(">I4sII", 16, b"trun", 0, count)
    tfhd = struct.pack(">I4sIII", 20, b"tfhd", 0x10, 1, 1)
    traf = struct.pack(">I4s", 8 + len(tfhd + trun), b"traf") + tfhd + trun
    return encode(4) + struct.pack(">I4s", 8 + len(traf), b"moof") + traf


def picture(data: bytes, name: bytes = b"jpg") -> bytes:
    return member(b"0." + name, data) + member(b"0.txt", b"a picture")


def video(data: bytes) -> bytes:
    content = json.dumps({"content": [{"type": "video", "video": "mp4"}]}).encode()
    return member(b"0.mp4", data) + member(b"0.json", content)


def document(text: bytes) -> bytes:
    return member(b"0.json", text)


def tars(outside: str) -> dict[str, bytes]:
    """Name -> bytes; ``outside`` is an absolute folder that an extracting reader would write to.

    Each tar also holds two good samples, ``good1`` before and ``good2`` behind what is crafted.
    """
    big = zlib.compress(b"A" * 200_000_000)
    pixels = bytes(64 * 193)
    crafted = {
        "names_that_lead_out": member(b"../../evil.txt", b"x") + member(f"{outside}/evil.txt".encode(), b"x"),
        "links": header(b"a.txt", 0, b"2", b"/etc/passwd") + header(b"b.txt", 0, b"1", b"../../etc/passwd"),
        "devices_and_pipes": header(b"a.txt", 0, b"3") + header(b"b.txt", 0, b"4") + header(b"c.txt", 0, b"6"),
        "pickles": b"".join(
            member(f"0.{name}".encode(), pickle.dumps(Payload())) for name in ("pyd", "pth", "pkl", "pickle", "npy")
        )
        + document(b'{"content": [{"type": "image", "image": "pkl"}, {"type": "video", "video": "pth"}]}'),
        "size_below_zero": header(b"0.txt", -_BLOCK),
        "pax_size_below_zero": pax(b"14 size=-5120\n") + member(b"0.txt", b"x"),
        "pax_of_a_petabyte": header(b"pax", 10**15, b"x"),
        "name_of_twenty_gigabytes": header(b"long", 20 * 2**30, b"L"),
        "chain_of_pax_headers": pax(b"16 path=abc.txt\n") * 3000 + member(b"0.txt", b"x"),
        "pax_without_an_end": pax(b"1" * 60_000) + member(b"0.txt", b"x"),
        "sparse_map_without_an_end": member(b"0.txt", b"\1" * _BLOCK, b"S"),
        "sparse_by_pax": pax(b"22 GNU.sparse.major=1\n") + member(b"0.txt", b"999999999\n"),
        "names_that_are_no_text": member(b"\xff\xfe\x00.txt", b"x") + member(b"\x1b]0;x\x07.txt", b"x"),
        "png_of_3600_megapixels": picture(png(60_000, 60_000), b"png"),
        "jpeg_of_3600_megapixels": picture(jpeg(60_000, 60_000)),
        "webp_of_268_megapixels": picture(webp(16_384, 16_384), b"webp"),
        "png_text_bomb": picture(png(64, 64, chunk(b"zTXt", b"a\0\0" + big), pixels=pixels), b"png"),
        "png_profile_bomb": picture(png(64, 64, chunk(b"iCCP", b"a\0\0" + big), pixels=pixels), b"png"),
        "mp4_of_80_million_frames": video(claiming_mp4(b"stsz", 4, ">II", 1, 80_000_000)),
        "mp4_fragment_of_2_billion_frames": video(trun_mp4(2**31 - 1)),
        "playlist_as_mp4": video(b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n"),
        "concat_as_mp4": video(b"ffconcat version 1.0\nfile /etc/passwd\n"),
        "session_as_mp4": video(b"v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"),
        "json_100000_deep": document(b'{"content": ' + b"[" * 100_000),
        "json_numbers": document(b'{"content": [{"type": "video", "frames": ["a"], "fps": ' + b"9" * 100_000 + b"}]}"),
        "json_twice_the_same": document(b'{"content": "a", "content": "b"}') + member(b"0.json", b"{}"),
        "text_of_100_million_characters": member(b"0.txt", b"a" * 100_000_000),
        "a_picture_named_65537_times": member(b"0.0.jpg", jpeg(64, 64))
        + document(
            b'{"content": [' + b",".join([b'{"type": "image", "image": "0.jpg"}'] * 65_537) + b"]}",
        ),
    }
    good1, good2 = member(b"good1.txt", b"before"), member(b"good2.txt", b"behind")
    return {name: good1 + data + good2 + END for name, data in crafted.items()} | {
        "cut_off": good1 + good2 + header(b"0.txt", 10**15) + b"x" * 700,
    }
