"""Real video files of known times, and what ffprobe says about them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATES = {"23.976": Fraction(24000, 1001), "25": Fraction(25), "29.97": Fraction(30000, 1001)}
MILLISECOND = Fraction(1, 1000)


def paint(number: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 [height, width, 3] that says the frame's number: its left half number % 16, its right half number // 16."""
    pixels = np.full((size[1], size[0], 3), 8 + number % 16 * 15, np.uint8)
    pixels[:, size[0] // 2 :] = 8 + number // 16 * 15
    pixels[: size[1] // 4, : size[0] // 4] = (200, 30, 30)  # the top left corner
    return pixels


def number_of(left: int, right: int) -> int:
    """The inverse, of two grey levels."""
    return round((left - 8) / 15) + 16 * round((right - 8) / 15)


def encode(
    num_frames: int = 60,
    rate: Fraction = Fraction(25),
    milliseconds: Sequence[int] | None = None,
    kind: str = "mp4",
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    options: dict[str, str] | None = None,
    rotation: int = 0,
) -> bytes:
    """Frames that say their number, at a constant rate or at ``milliseconds``; with B-frames by default."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = options or {"preset": "veryfast", "g": "12", "bf": "2", "threads": "1"}
        if rotation:
            stream.set_display_rotation(rotation)
        if milliseconds is not None:
            stream.codec_context.time_base = MILLISECOND
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(paint(number % 256, size), "rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[number], MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def encode_sound(seconds: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        for start in range(0, int(8000 * seconds), 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.rate, frame.pts = 8000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def uneven(num_frames: int, seed: int = 0) -> list[int]:
    """Milliseconds of frames that come 10 to 120 ms after one another."""
    return np.cumsum([0, *np.random.default_rng(seed).integers(10, 121, num_frames - 1).tolist()]).tolist()


def shown_times(data: bytes, folder: Path) -> list[float]:
    """Seconds of every shown frame: from ffprobe, which decodes; from the frames that PyAV decodes without it."""
    if shutil.which("ffprobe") is None:
        with av.open(io.BytesIO(data)) as container:
            return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    path = folder / "probed"
    path.write_bytes(data)
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "frame=pts_time", "-of", "json"]
    found = json.loads(subprocess.run([*command, str(path)], capture_output=True, check=True, text=True).stdout)
    return [float(frame["pts_time"]) for frame in found["frames"]]
