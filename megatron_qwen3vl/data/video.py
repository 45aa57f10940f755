"""Video files: when each frame is shown, without decoding; and the pixels of chosen frames.

``probe`` reads the packets' presentation times (what ffprobe prints as pts_time, never a rate), ``decode_frames``
decodes no more groups of pictures than the chosen frames need and turns only those frames into RGB. A frame is known
by its tick, its presentation time in units of the container's time base, so what was planned is what is decoded.

Time 0 is the container's, but for MPEG program and transport streams, whose clock begins anywhere: there it is where
the first stream begins. Frames that an edit list cuts away, or that lie before 0, are never shown and do not exist
here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from megatron_qwen3vl.data.limits import MAX_FRAME_PIXELS, MAX_FRAMES
from megatron_qwen3vl.data.video_header import check_claims, container_of
from megatron_qwen3vl.errors import BadSample

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# What libav may ever decode; sound is never opened. The names are libav's decoders.
_CODECS = (
    "h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "mpeg2video", "mpeg1video",
    "msmpeg4", "msmpeg4v1", "msmpeg4v2", "h263", "flv", "vp6", "vp6f", "wmv1", "wmv2", "wmv3", "vc1", "theora", "mjpeg",
    "prores", "dnxhd", "ffv1",
)  # fmt: skip
_CLOCK_BEGINS_ANYWHERE = ("mpegts", "mpeg")
_MISSING_S = 0.3  # by how much the packets may end before the container's own duration: headers are rounded
_VP8_SHOWN = 0x10  # of a frame's first byte (RFC 6386, 9.1): some packets hold a frame that is only referred to


@dataclass(frozen=True)
class VideoFacts:
    """``ticks`` int64 [frames], ascending: when each frame is shown, in units of ``time_base`` seconds. ``height`` and
    ``width`` are pixels as ``decode_frames`` will give them."""

    height: int
    width: int
    time_base: Fraction
    ticks: np.ndarray


def probe(data: bytes) -> VideoFacts:
    """What is known of a video file without decoding more than its first frame.

    Raises:
        BadSample: no readable video with at least two frames, or one that is cut off.
    """
    with _opened(data) as (container, stream):
        packets = _demux(container, stream, len(data))
        base = stream.time_base
        if base is None:
            raise BadSample("video states no time base")
        shown = _shown(stream, packets, _origin(container, stream))
    if len(shown) < 2:
        raise BadSample(f"video lasts no time: it has {'one frame' if shown else 'no frames'}")
    ticks = np.array(sorted(shown), np.int64)
    (first,) = decode_frames(data, ticks[:1])
    return VideoFacts(first.shape[0], first.shape[1], base, ticks)


def decode_frames(
    data: bytes, ticks: Sequence[int] | np.ndarray, fit: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> list[np.ndarray]:
    """The frames shown at ``ticks`` (ascending), uint8 [height, width, 3] each, turned as the container asks.

    Pixels are square: a stated aspect ratio of pixels is not followed, as transformers does not. ``fit`` makes of each
    frame what is kept of it.

    Raises:
        BadSample: the file cannot be read, or has no whole frame at one of the ticks.
    """
    with _opened(data) as (container, stream):
        packets: list[Packet] = []
        for packet in container.demux(stream):
            if packet.size:
                _keep(packet, packets)
        origin = _origin(container, stream)
        shown = _shown(stream, packets, origin)
        wanted = [int(tick) for tick in ticks]
        for tick in wanted:
            if tick not in shown:
                raise BadSample(f"video has no frame at tick {tick}; run `data index` again")
        ranges = _ranges(packets, shown, wanted)
        found = _decode(stream, packets, ranges, set(wanted), origin, fit)
        if len(found) < len(set(wanted)):
            # a group may begin at a picture from which a decoder needs a few more to recover
            stream.codec_context.flush_buffers()
            found = _decode(stream, packets, [(0, len(packets))], set(wanted), origin, fit)
    for tick in wanted:
        if tick not in found:
            raise BadSample(f"video cannot be decoded: no whole frame at tick {tick}")
    return [found[tick] for tick in wanted]


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video. All trouble inside comes out as BadSample."""
    import av  # takes a moment, and most runs have no video files

    container_name = container_of(data)
    check_claims(container_name, data)
    options = {
        "format_whitelist": container_name,  # no playlist, no demuxer within a demuxer
        "protocol_whitelist": "none",  # nothing but these bytes is ever opened
        "codec_whitelist": ",".join(_CODECS),
        "max_pixels": str(MAX_FRAME_PIXELS),
        "threads": "1",
    }
    try:
        with av.open(io.BytesIO(data), format=container_name, options=options) as container:
            if not container.streams.video:
                raise BadSample("video file has no video stream")
            stream = container.streams.video[0]
            codec = stream.codec_context
            if codec.codec.name not in _CODECS:
                raise BadSample(f"video is coded as {codec.codec.name}, which is not read")
            if codec.width * codec.height > MAX_FRAME_PIXELS:
                raise BadSample(f"video of {codec.width} x {codec.height} pixels is too large to decode")
            if len(stream.index_entries) > MAX_FRAMES:
                raise BadSample(f"video has more than {MAX_FRAMES} frames")
            codec.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
            # one thread: there is a worker for each core
            stream.thread_type, codec.thread_count = "NONE", 1
            yield container, stream
    except (BadSample, MemoryError):  # the memory's end is the worker's affair
        raise
    except Exception as error:  # libav's parsers and decoders raise anything on hostile files
        raise BadSample(f"video cannot be decoded: {' '.join(str(error).split())[:200]}") from error


def _demux(container: InputContainer, stream: VideoStream, size: int) -> list[Packet]:
    """Packets of the video in decoding order, of a file that holds everything that it says it holds."""
    if any(entry.pos + entry.size > size for entry in stream.index_entries):
        raise BadSample(f"video is cut off: its own table goes on behind its last byte {size}")
    packets: list[Packet] = []
    end = 0.0
    for number, packet in enumerate(container.demux()):
        if number > 4 * MAX_FRAMES:
            raise BadSample(f"video has more than {4 * MAX_FRAMES} packets")
        if packet.size and packet.stream.index == stream.index:
            _keep(packet, packets)
        last = packet.pts if packet.pts is not None else packet.dts
        if packet.size and last is not None and packet.time_base is not None:
            end = max(end, float((last + (packet.duration or 0)) * packet.time_base))
    if container.duration and packets:
        stated = (container.duration + min(container.start_time or 0, 0)) / 1e6
        if container.format.name not in _CLOCK_BEGINS_ANYWHERE and end + _MISSING_S < stated:
            raise BadSample(f"video is cut off: it ends after {end:.1f} of {stated:.1f} seconds")
    return packets


def _keep(packet: Packet, packets: list[Packet]) -> None:
    if len(packets) == MAX_FRAMES:
        raise BadSample(f"video has more than {MAX_FRAMES} frames")
    packets.append(packet)


def _origin(container: InputContainer, stream: VideoStream) -> int:
    """The tick of the stream that is time 0."""
    if container.format.name not in _CLOCK_BEGINS_ANYWHERE or not container.start_time or stream.time_base is None:
        return 0
    return round(Fraction(container.start_time, 1_000_000) / stream.time_base)


def _shown(stream: VideoStream, packets: Sequence[Packet], origin: int) -> dict[int, int]:
    """tick -> place in ``packets`` of every frame that is shown."""
    ordered = not stream.codec_context.has_b_frames  # then frames are shown in decoding order
    hidden = stream.codec_context.name == "vp8"
    shown: dict[int, int] = {}
    for place, packet in enumerate(packets):
        if packet.is_discard or (hidden and not bytes(packet)[0] & _VP8_SHOWN):
            continue
        tick = packet.pts if packet.pts is not None or not ordered else packet.dts
        if tick is None:
            raise BadSample("video states no presentation times; remux it (to .mp4 or .mkv)")
        if tick >= origin:
            shown.setdefault(tick - origin, place)
    return shown


def _ranges(packets: Sequence[Packet], shown: dict[int, int], wanted: Sequence[int]) -> list[tuple[int, int]]:
    """Which packets must be decoded: whole groups of pictures, [first, last + 1) each."""
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe] or [0]
    starts = np.array([0, *keys[1:]])  # what lies before the first key frame goes with it
    ends = [*starts[1:].tolist(), len(packets)]
    needed: set[int] = set()
    for tick in wanted:
        place = shown[tick]
        group = int(np.searchsorted(starts, place, side="right")) - 1
        needed.add(group)
        key, own = packets[int(starts[group])].pts, packets[place].pts
        if group and key is not None and own is not None and own < key:
            needed.add(group - 1)  # shown before its group's first picture: it refers to the group before, too
    ranges: list[tuple[int, int]] = []
    for group in sorted(needed):
        start, end = int(starts[group]), ends[group]
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, end))
    return ranges


def _decode(
    stream: VideoStream,
    packets: Sequence[Packet],
    ranges: Sequence[tuple[int, int]],
    wanted: set[int],
    origin: int,
    fit: Callable[[np.ndarray], np.ndarray],
) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    codec = stream.codec_context
    for start, end in ranges:
        for packet in [*packets[start:end], None]:  # None: give out what is held back
            for frame in codec.decode(packet):
                tick = frame.pts if frame.pts is not None else frame.dts
                if tick is not None and tick - origin in wanted and not frame.is_corrupt:
                    found[tick - origin] = fit(_rgb(frame))
            if len(found) == len(wanted):
                return found
        codec.flush_buffers()
    return found


def _rgb(frame: VideoFrame) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    # PyAV's rotation is counter-clockwise, as np.rot90's
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))
