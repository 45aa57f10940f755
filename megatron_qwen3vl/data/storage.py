"""Requests to web servers and object stores. The only importer of obstore (Rust's object_store), which speaks the
protocols and signs requests with the credentials of the environment.

Repeating is done here, because short answers and stalls are to be repeated as well as what obstore knows to repeat.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import random
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import obstore
from obstore.exceptions import BaseError, NotSupportedError, PermissionDeniedError, UnauthenticatedError
from obstore.store import GCSStore, HTTPStore, ObjectStore, S3Store

from megatron_qwen3vl.config.schema import StorageConfig
from megatron_qwen3vl.data.places import TAG, Stamp

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig  # exist for type checkers only

BUCKETS = ("s3", "gs")  # can be listed and written
_LONGEST_WAIT_S = 30.0
# where a cloud's machines ask for their credentials, when the environment has none
_METADATA = ("169.254.169.254", "169.254.170.", "metadata.google", "metadata/v1")
_NO_CREDENTIALS = " when asking for credentials; set them in the environment, or storage.anonymous=true"
_PASSING = ("status 408", "status 425", "status 429")  # another try may help
_WHOLE_ANSWER = 20  # times timeout_s: a server that dribbles is given up, too

Result = TypeVar("Result")


def without_credentials(address: str) -> str:
    """Without user, password and query, where signatures stand."""
    parts = urlsplit(address)
    if parts.scheme in BUCKETS:
        return address
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class StorageError(OSError):
    """The network's or the server's trouble, after all tries. ``strerror`` names address, bytes and what happened."""

    def __str__(self) -> str:
        return str(self.strerror)


class _Again(Exception):
    """An answer that another try may mend; the text says what was wrong with it."""


class EndsBefore(Exception):
    """The file has fewer bytes than were asked for. Not the network's trouble."""


def head(address: str, storage: StorageConfig) -> Stamp:
    """Raises FileNotFoundError, StorageError."""

    def ask() -> Stamp:
        store, path = _store_of(address, storage)
        return _stamp_of(obstore.head(store, path))

    return _persistently(address, storage, "its size", ask)


def get_range(address: str, storage: StorageConfig, offset: int, size: int, check: Callable[[Stamp], None]) -> bytes:
    """Exactly these bytes.

    Args:
        check: is told of each answer's state before its bytes are taken; what it raises is not tried again.

    Raises:
        FileNotFoundError, StorageError, EndsBefore.
    """

    def ask() -> bytes:
        store, path = _store_of(address, storage)
        answer = obstore.get(store, path, options={"range": (offset, offset + size)})
        found = _stamp_of(answer.meta)
        check(found)
        if found.size < offset + size:
            raise EndsBefore
        data = bytes(answer.bytes())
        if len(data) != size:
            raise _Again(f"{len(data)} of {size} bytes came")
        return data

    return _persistently(address, storage, f"bytes {offset} to {offset + size}", ask)


def get(address: str, storage: StorageConfig) -> bytes:
    """The whole file. Raises FileNotFoundError, StorageError."""

    def ask() -> bytes:
        store, path = _store_of(address, storage)
        answer = obstore.get(store, path)
        data = bytes(answer.bytes())
        if len(data) != answer.meta["size"]:
            raise _Again(f"{len(data)} of {answer.meta['size']} bytes came")
        return data

    return _persistently(address, storage, "it", ask)


def put(address: str, storage: StorageConfig, data: bytes) -> None:
    """Whole or not at all. Raises StorageError."""

    def ask() -> None:
        store, path = _store_of(address, storage)
        obstore.put(store, path, data)

    _persistently(address, storage, "it", ask)


def list_files(address: str, storage: StorageConfig) -> list[tuple[str, Stamp]]:
    """Paths inside the bucket of all files below a folder of it, and their states. Raises StorageError."""

    def ask() -> list[tuple[str, Stamp]]:
        store, prefix = _store_of(address.rstrip("/") + "/", storage)
        return [(entry["path"], _stamp_of(entry)) for chunk in obstore.list(store, prefix or None) for entry in chunk]

    return _persistently(address, storage, "its list", ask)


def _persistently(address: str, storage: StorageConfig, what: str, attempt: Callable[[], Result]) -> Result:
    """``attempt()``, repeated with growing, random waits while another try may help."""
    name, tries = without_credentials(address), storage.retries + 1
    for number in range(tries):
        if number:
            time.sleep(_wait_s(number, storage.backoff_s))
        try:
            return attempt()
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, f"{name} does not exist") from None
        except (PermissionDeniedError, UnauthenticatedError):
            raise StorageError(errno.EIO, f"{name}: the server refuses access; check the credentials") from None
        except NotSupportedError:
            happened = "the server answered with the whole file where a range was asked for"
        except _Again as again:
            happened = str(again)
        except BaseError as error:
            happened = _what_happened(str(error), storage.timeout_s)
            if happened.startswith("status 416"):
                raise EndsBefore from None
            if happened.startswith(("status 3", "status 4")) and not happened.startswith(_PASSING):
                raise StorageError(errno.EIO, f"{name}: {what} could not be had: {happened}") from None
        except (ValueError, TypeError) as error:
            raise StorageError(errno.EIO, f"{name}: {_what_happened(str(error), storage.timeout_s)}") from None
    raise StorageError(errno.EIO, f"{name}: {what} could not be had in {tries} tries; the last: {happened}")


def _stamp_of(meta: Any) -> Stamp:
    seconds = int(meta["last_modified"].timestamp())
    tag = meta["e_tag"].removeprefix("W/").strip('"') if meta["e_tag"] else f"Last-Modified {seconds}"
    return Stamp(meta["size"], seconds * 10**9, hashlib.sha256(tag.encode()).hexdigest(), TAG)


def _wait_s(number: int, first_s: float) -> float:
    """Before repetition ``number`` (from 1): doubled each time, and half of it by chance, so that a thousand readers
    that failed together do not come back together."""
    longest = min(first_s * 2 ** (number - 1), _LONGEST_WAIT_S)
    return longest * (0.5 + 0.5 * random.random())


def _what_happened(text: str, timeout_s: float) -> str:
    """One line without addresses, for these may be signed."""
    if found := re.search(r"status code: (\d{3}[^:\n]*)", text):
        hint = _NO_CREDENTIALS if any(host in text for host in _METADATA) else ""
        return f"status {found[1].strip()}{hint}"
    if found := re.search(r"Requested (\d+)\.\.(\d+), got (\d+)\.\.(\d+)", text):
        return f"bytes {found[3]} to {found[4]} came"
    if "TimedOut" in text or "kind: Timeout" in text:
        return f"nothing came for {timeout_s:g} s"
    if "IncompleteBody" in text or "IncompleteMessage" in text:
        return "the connection ended too early"
    for sign, meaning in (("ConnectionReset", "the connection was reset"), ("ConnectionRefused", "no server there")):
        if sign in text:
            return meaning
    if "dns error" in text:
        return "no such host"
    return re.sub(r"\S+://\S+", "", text.split("\n")[0])[:200].strip()


def _store_of(address: str, storage: StorageConfig) -> tuple[ObjectStore, str]:
    """The store that a file is in, and its path there."""
    parts = urlsplit(address)
    if parts.scheme in BUCKETS:
        key = address.split("://", 1)[1].partition("/")[2]
        return _bucket(parts.scheme, parts.netloc, storage), key
    # a signature is one file's own, and obstore keeps a query with the store
    root = urlunsplit((parts.scheme, parts.netloc, "", parts.query, ""))
    return _server(root, storage), unquote(parts.path).lstrip("/")


# A store is a pool of connections; its only state is what is in flight.
@functools.lru_cache(maxsize=64)
def _server(root: str, storage: StorageConfig) -> ObjectStore:
    return HTTPStore.from_url(root, client_options=_client(storage, root), retry_config=_NO_RETRIES)


@functools.lru_cache(maxsize=64)
def _bucket(scheme: str, bucket: str, storage: StorageConfig) -> ObjectStore:
    settings: dict[str, Any] = {"skip_signature": True} if storage.anonymous else {}
    if scheme == "gs":
        if storage.endpoint is not None:
            settings["base_url"] = storage.endpoint
        return GCSStore(
            bucket,
            config=cast(Any, settings),
            client_options=_client(storage, storage.endpoint),
            retry_config=_NO_RETRIES,
        )
    endpoint = storage.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint is not None:
        settings["endpoint"] = endpoint
    return S3Store(
        bucket, config=cast(Any, settings), client_options=_client(storage, endpoint), retry_config=_NO_RETRIES
    )


_NO_RETRIES: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}


def _client(storage: StorageConfig, endpoint: str | None) -> ClientConfig:
    return {
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=storage.timeout_s),
        "read_timeout": timedelta(seconds=storage.timeout_s),
        "timeout": timedelta(seconds=_WHOLE_ANSWER * storage.timeout_s),
    }
