"""Shards on disk: webdataset tars (KEY.json + KEY.<name>) and plain folders with the same names.

A shard is scanned once (``scan``) for where everything lies; afterwards samples are read by offset. The only importer
of webdataset: its naming rule (``base_plus_ext``), brace patterns and writer are the format.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from webdataset import TarWriter
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from megatron_qwen3vl.config.paths import resource
from megatron_qwen3vl.config.schema import StorageConfig
from megatron_qwen3vl.data.limits import most_bytes
from megatron_qwen3vl.data.places import LocalPlace, Place, Stamp
from megatron_qwen3vl.data.remote import find_tars, is_address
from megatron_qwen3vl.data.storage import without_credentials
from megatron_qwen3vl.data.tar_headers import tar_members
from megatron_qwen3vl.errors import BadSample, UserError

_GAP = 64 * 1024  # bytes between two members that are read along rather than skipped


@dataclass(frozen=True)
class Shard:
    """A tar, or a folder of loose files. ``name`` is its path inside the source, without ``.tar``; a folder that is the
    source itself is named ``.``."""

    place: Place
    name: str

    @property
    def is_tar(self) -> bool:
        return self.place.name.endswith(".tar")

    @property
    def beside(self) -> Place:
        """Where its index lies: ``<shard>.tar.idx``, or ``.idx`` inside the folder."""
        return self.place.sibling(".idx") if self.is_tar else self.place.inside(".idx")

    def file(self, key: str, name: str) -> Place:
        """What a member is read from: the tar, or the loose file itself."""
        return self.place if self.is_tar else self.place.inside(f"{key}.{name}")

    @property
    def folder(self) -> Path:
        """Of loose files, which are local."""
        assert isinstance(self.place, LocalPlace)
        return self.place.path


@dataclass(frozen=True)
class Member:
    """One file of a sample: ``name`` is what stands behind ``KEY.``; in a folder the offset is 0."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Group:
    key: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Scan:
    """``damage`` has a line for each part of the shard that cannot be read."""

    groups: tuple[Group, ...]
    damage: tuple[str, ...]


def find_shards(spec: str | Sequence[str], base: Path, storage: StorageConfig | None = None) -> list[Shard]:
    """The shards of a brace pattern, a folder, a tar or a list of these, relative to ``base``; or behind addresses.

    A folder stands for the tars below it, in order of their names, or, without any tar, for its loose files.

    Args:
        storage: how addresses are read; None refuses them.

    Raises:
        UserError: a missing file, a folder without samples, a shard named twice, or a server that cannot be reached.
    """
    entries = [spec] if isinstance(spec, str) else list(spec)
    problems: list[str] = []
    if any(is_address(entry) for entry in entries):
        if storage is None:
            name = without_credentials(next(entry for entry in entries if is_address(entry)))
            raise UserError(f"shards: {name}: addresses are not read here; copy the shards")
        if not all(is_address(entry) for entry in entries):
            raise UserError("shards: names files and addresses; give each kind a source of its own")
        return [Shard(*found) for found in find_tars(_expand_all(entries), storage)]
    paths: list[Path] = []
    roots: list[Path] = []
    for entry in entries:
        for path in _expand(entry, base, problems):
            if path.is_dir():
                found = sorted(p for p in path.rglob("*.tar") if p.is_file() and not p.name.startswith("."))
                if not found and not any(_loose_files(path)):
                    problems.append(f"shards: {path} holds no .tar and no samples; name the folder of the shards")
                paths += found or [path]
                roots.append(path)
            elif not path.exists():
                problems.append(f"shards: {path} does not exist; {_how_to_get(path, base)}")
            elif path.suffix != ".tar":
                problems.append(f"shards: {path} is not a .tar; name folders or uncompressed tars")
            else:
                paths.append(path)
                roots.append(path.parent)
    problems += [f"shards: {path} is named twice; name it once" for path, times in Counter(paths).items() if times > 1]
    if not paths and not problems:
        problems.append(f"shards: {spec!r} names nothing; name a pattern, a folder or a list")
    if problems:
        raise UserError(problems)
    root = Path(os.path.commonpath(roots))
    return [Shard(LocalPlace(path), _name_inside(path, root)) for path in paths]


def _how_to_get(missing: Path, base: Path) -> str:
    """The built-in data is not part of a checkout: its recipes are."""
    built = resource("data_recipes") / "built"
    if not missing.absolute().is_relative_to(built) or missing.absolute() == built:
        return f"mend `shards` (relative to {base})"
    domain = missing.absolute().relative_to(built).parts[0]
    command = f"megatron-qwen3vl data build data_recipes/domains/{domain}.yaml {built / domain}"
    return f"build it: {command} (launch/data.sh builds all)"


def _expand_all(addresses: Sequence[str]) -> list[str]:
    names: list[str] = []
    for entry in addresses:
        try:
            names += [name for name in expand_urls(entry) if name]
        except ValueError:  # its text would show credentials
            name = without_credentials(entry)
            raise UserError(f"shards: {name} is not a brace pattern: mend its braces, as in {{0..9}}.tar") from None
    return names


def _expand(entry: str, base: Path, problems: list[str]) -> list[Path]:
    if entry.startswith("pipe:"):
        problems.append(f"shards: {entry} would start a program, which is never done; name files or addresses")
        return []
    try:
        names = expand_urls(entry)
    except ValueError as error:
        problems.append(f"shards: {entry} is not a brace pattern ({error})")
        return []
    return [Path(os.path.normpath(base / name)) for name in names if name]


def _name_inside(path: Path, root: Path) -> str:
    relative = path.relative_to(root).as_posix()
    return relative.removesuffix(".tar") if path.is_file() else relative


def _loose_files(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and base_plus_ext(name)[0] is not None:
                yield Path(parent) / name


def scan(shard: Shard) -> Scan:
    """All samples of a shard in the order of their first member; reads headers only.

    Raises:
        UserError: the file cannot be opened at all.
    """
    damage: list[str] = []
    groups: dict[str, list[Member]] = {}
    try:
        for name, offset, size in _tar_members(shard, damage) if shard.is_tar else _folder_members(shard):
            key, suffix = base_plus_ext(name)
            if key is not None and not PurePosixPath(key).name.startswith("."):
                groups.setdefault(key, []).append(Member(suffix, offset, size))
    except OSError as error:
        raise UserError(f"shards: cannot read {shard.place.name}: {error.strerror}") from None
    return Scan(tuple(Group(key, tuple(members)) for key, members in groups.items()), tuple(damage))


def _folder_members(shard: Shard) -> Iterator[tuple[str, int, int]]:
    for path in _loose_files(shard.folder):
        yield path.relative_to(shard.folder).as_posix(), 0, path.stat().st_size


def _tar_members(shard: Shard, damage: list[str]) -> Iterator[tuple[str, int, int]]:
    """Readable regular files. What lies between an unreadable header and the next good one goes to ``damage``."""
    total = shard.place.size()
    with shard.place.open() as file:
        yield from tar_members(file, total, shard.place.name, damage)


def read_member(shard: Shard, key: str, member: Member) -> bytes:
    """Bytes of one file of a sample.

    Raises:
        BadSample: the shard ends before them, or the file is larger than any that is read.
        OSError: the file itself cannot be read. That is the machine's trouble, not the sample's.
    """
    _check_size(member)
    try:
        return shard.file(key, member.name).read(member.offset, member.size)
    except BadSample as bad:
        raise BadSample(f"cut off inside {key}.{member.name}: {bad}") from None


def _check_size(member: Member) -> None:
    if not 0 <= member.size <= most_bytes(member.name):
        raise BadSample(f"{member.name} has {member.size:,} bytes, more than {most_bytes(member.name):,}")


def read_members(shard: Shard, key: str, members: Sequence[Member]) -> dict[str, bytes]:
    """Files of a sample by name. What lies close together in a tar is read at once.

    Raises:
        BadSample, OSError: as ``read_member``.
    """
    for member in members:
        _check_size(member)
    if not shard.is_tar:
        return {member.name: read_member(shard, key, member) for member in members}
    files: dict[str, bytes] = {}
    for run in _runs(sorted(members, key=lambda member: member.offset)):
        start, end = run[0].offset, max(member.offset + member.size for member in run)
        try:
            data = memoryview(shard.place.read(start, end - start))
        except BadSample as bad:
            raise BadSample(f"cut off inside {key}: {bad}") from None
        files |= {member.name: bytes(data[member.offset - start :][: member.size]) for member in run}
    return files


def _runs(members: Sequence[Member]) -> list[list[Member]]:
    """Members by offset -> those to be read at once."""
    runs: list[list[Member]] = []
    for member in members:
        if runs and member.offset - (runs[-1][-1].offset + runs[-1][-1].size) <= _GAP:
            runs[-1].append(member)
        else:
            runs.append([member])
    return runs


def take_stamp(shard: Shard, known: Stamp | None = None) -> Stamp:
    """The shard's stamp; with ``known`` of the same size and time its digest is taken over, not computed.

    Raises:
        UserError: the shard cannot be read.
    """
    try:
        return shard.place.stamp(known) if shard.is_tar else _folder_stamp(shard.folder, known)
    except OSError as error:
        raise UserError(f"shards: cannot read {shard.place.name}: {error.strerror}") from None


def version_of(shard: Shard) -> str:
    """What changes whenever the shard does, found without reading it.

    Raises:
        UserError: the shard cannot be reached.
    """
    try:
        if shard.is_tar:
            return shard.place.version()
        files = list(_loose_files(shard.folder))
        size, mtime_ns = _folder_status(files)
        return f"{len(files)} {size} {mtime_ns}"
    except OSError as error:
        raise UserError(f"shards: cannot read {shard.place.name}: {error.strerror}") from None


def _folder_status(files: Iterable[Path]) -> tuple[int, int]:
    """Bytes of all files, and the time of the latest."""
    status = [path.stat() for path in files]
    return sum(s.st_size for s in status), max((s.st_mtime_ns for s in status), default=0)


def _folder_stamp(folder: Path, known: Stamp | None) -> Stamp:
    files = list(_loose_files(folder))
    size, mtime_ns = _folder_status(files)
    if known is not None and (known.size, known.mtime_ns) == (size, mtime_ns):
        return known
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape"))
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Stamp(size, mtime_ns, digest.hexdigest())


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Write (key, {name: bytes}) to a tar, whole or not at all; the same samples give the same bytes.

    Returns:
        The number of samples.

    Raises:
        ValueError: a key that would not be read back as one sample.
    """
    count = 0
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file, TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT") as writer:
            for key, files in samples:
                if any(base_plus_ext(f"{key}.{name}") != (key, name) for name in files):
                    raise ValueError(f"key {key!r}: the last part of a key must not hold a dot or be empty")
                writer.write({"__key__": key, **files})
                count += 1
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count
