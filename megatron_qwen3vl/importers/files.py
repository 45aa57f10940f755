"""What the readers share: files of a source, lines of JSON, pictures of a folder, a sample's JSON."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from PIL import Image

from megatron_qwen3vl.data.limits import MAX_IMAGE_BYTES, MAX_TEXT_BYTES
from megatron_qwen3vl.data.vision import image_size
from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.frame import Made

LONGEST_LINE = 64 * 2**20  # bytes
_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_TO_PNG = ("GIF", "BMP", "TIFF")


def find_files(source: Path, endings: Sequence[str], what: str) -> list[Path]:
    """``source`` itself, or the files below it with one of the ``endings``, in order of their paths.

    Raises:
        UserError: nothing there.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"data import: {source}: no such file or folder")
    found = sorted(p for p in source.rglob("*") if p.name.lower().endswith(tuple(endings)) and p.is_file())
    if not found:
        raise UserError(f"data import: {source} holds no {what} ({', '.join(endings)})")
    return found


def stem_of(path: Path, source: Path) -> str:
    """Its path inside ``source`` without the format's endings: ``en/c4.json.gz`` -> ``en/c4``."""
    name = path.relative_to(source).as_posix() if source.is_dir() else path.name
    for ending in (".gz", ".zip", ".jsonl", ".json", ".parquet", ".pdf"):
        name = name.removesuffix(ending)
    return name


@dataclass(frozen=True)
class Line:
    """One line of a file, from 1. ``part``: which part of the file lies behind it, 0 to 1."""

    path: Path
    number: int
    data: bytes
    part: float

    def value(self) -> Any:
        """What it holds as JSON.

        Raises:
            BadSample: it is not JSON.
        """
        if len(self.data) > LONGEST_LINE:
            raise BadSample(f"line {self.number} of {self.path.name} has more than {LONGEST_LINE:,} bytes")
        try:
            return json.loads(self.data)
        except (ValueError, RecursionError) as error:
            raise BadSample(f"line {self.number} of {self.path.name} is not JSON: {error}") from None

    def object(self) -> dict[str, Any]:
        """Raises:
        BadSample: not a JSON object.
        """
        value = self.value()
        if not isinstance(value, dict):
            raise BadSample(f"line {self.number} of {self.path.name} is not a JSON object")
        return value


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of a text file that are not empty; ``.gz`` and ``.zip`` (one file inside) are read as they are.

    Raises:
        UserError: not what its ending says, or cut off.
    """
    size = max(path.stat().st_size, 1)
    with open(path, "rb") as raw:
        try:
            with _plain(path, raw) as file:
                number = 0
                while data := file.readline(LONGEST_LINE + 1):
                    number += 1
                    rest = data
                    while len(data) > LONGEST_LINE and rest and not rest.endswith(b"\n"):
                        rest = file.readline(LONGEST_LINE)
                    if data.strip():
                        yield Line(path, number, data, min(raw.tell() / size, 1.0))
        except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"data import: {path} cannot be unpacked: {error}") from None


@contextmanager
def _plain(path: Path, raw: BinaryIO) -> Iterator[BinaryIO]:
    if path.suffix == ".gz":
        with gzip.open(raw) as unpacked:
            yield cast(BinaryIO, unpacked)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(raw) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if len(names) != 1:
                raise UserError(f"data import: {path} holds {len(names)} files; it should hold one")
            with archive.open(names[0]) as member:
                yield cast(BinaryIO, member)
    else:
        yield raw


def read_beside(folder: Path, name: str, most: int = MAX_IMAGE_BYTES) -> bytes:
    """A file of at most ``most`` bytes that a data set names, inside ``folder``.

    Raises:
        BadSample: the name leads out of the folder, or there is no such file, or it cannot be read.
    """
    inside = PurePosixPath(name)
    if not name or inside.is_absolute() or ".." in inside.parts or "\0" in name:
        raise BadSample(f"{name!r:.80} is not a name inside {folder}")
    path = folder / inside
    try:
        if not path.is_file():
            raise BadSample(f"{name:.80} is not there")
        if path.stat().st_size > most:
            raise BadSample(f"{name:.80} has more than {most:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BadSample(f"{name:.80} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Picture:
    """An image as it goes into a shard: ``data`` is JPEG, PNG or WebP, ``ending`` says which."""

    data: bytes
    ending: str
    height: int
    width: int


def picture(data: bytes) -> Picture:
    """The bytes as they are where shards can hold them; GIF (its first frame), BMP and TIFF as PNG.

    Raises:
        BadSample: its header is not an image's, or says more pixels than are ever decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=(*_ENDINGS, *_TO_PNG)) as opened:
            kind = opened.format or ""
            if kind in _TO_PNG:
                if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or 0):
                    raise ValueError(f"{opened.width} x {opened.height} pixels are too many")
                buffer = io.BytesIO()
                opened.convert("RGB").save(buffer, "PNG", compress_level=1)
                data, kind = buffer.getvalue(), "PNG"
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise BadSample(f"image cannot be read: {error}") from None
    height, width = image_size(data)
    return Picture(data, _ENDINGS[kind], height, width)


def sample(body: Mapping[str, Any], media: Mapping[str, bytes], notes: Sequence[str] = ()) -> Made:
    """``body``: see ``recipes.record.document`` and ``conversation``. ``media``: the files that it names.

    Raises:
        BadSample: a text that is no Unicode (half a surrogate pair), or more text than a sample may have.
    """
    try:
        written = json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadSample("a text is not Unicode: it holds half a surrogate pair") from None
    if len(written) > MAX_TEXT_BYTES:
        raise BadSample(f"{len(written):,} bytes of text are more than a sample may have ({MAX_TEXT_BYTES:,})")
    return Made({"json": written, **media}, tuple(notes))
