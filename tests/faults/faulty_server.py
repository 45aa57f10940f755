"""A real HTTP server of a folder, with faults: for tests of what reads shards over a network.

    with FaultyServer(folder, {"error": 0.05, "short": 0.05, "stall": 0.01}, seed=7) as server:
        ... f"{server.address}/0.tar" ...

or in a process of its own: ``python tests/faults/faulty_server.py FOLDER --faults '{"error": 0.05}' --seed 7`` prints
its address. Knows GET, HEAD, PUT, ranges, ETag, If-Match, and the listing of S3 and of Google (``?list-type=2``).

Which request fails is fixed by the seed, not by the order in which threads come: a request is told by its path, its
range and how often it came before. No request fails more than ``in_a_row`` times in a row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

FAULTS = {
    "error": "status 500",
    "unavailable": "status 503",
    "throttle": "status 429",
    "short": "a whole answer of half the bytes that were asked for",
    "cut": "the connection ends in the middle of the body",
    "reset": "the connection is reset before any answer",
    "stall": "half of the body, then nothing more for stall_s",
    "whole": "status 200 with the whole file where a range was asked for",
    "shifted": "another range than the one asked for",
}
_PAGE = 2  # files in an answer to a listing
_STATUS = {"error": 500, "unavailable": 503, "throttle": 429}


@dataclass(frozen=True)
class Request:
    """``span``: first byte and the one behind the last, None without a range. ``fault``: None when it was answered as
    asked. ``sent``: bytes of the body."""

    method: str
    path: str
    span: tuple[int, int] | None
    status: int
    fault: str | None
    sent: int


class FaultyServer:
    """Runs between ``start`` and ``stop`` (or as a context) in threads of this process.

    Args:
        folder: what it serves; files may change while it runs, their ETag with them.
        faults: share of the requests for files that fail, for each kind of ``FAULTS``.
        seed: of which requests fail.
        in_a_row: no request fails more often than this before it is answered.
        stall_s: how long a stalled connection stays silent before it ends.

    Attributes:
        address: ``http://127.0.0.1:PORT``
        requests: what came, in the order of the answers.
    """

    def __init__(
        self,
        folder: Path,
        faults: Mapping[str, float] | None = None,
        seed: int = 0,
        in_a_row: int = 2,
        stall_s: float = 30.0,
    ) -> None:
        self.folder = Path(folder)
        self.rates = dict(faults or {})
        assert self.rates.keys() <= FAULTS.keys(), f"faults are {', '.join(FAULTS)}"
        self.seed, self.in_a_row, self.stall_s = seed, in_a_row, stall_s
        self.requests: list[Request] = []
        self.etags: dict[str, str] = {}  # path -> an ETag in place of the file's own
        self._script: deque[str | None] = deque()
        self._came: Counter[object] = Counter()
        self._failed: Counter[object] = Counter()
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> FaultyServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    __enter__ = start

    def __exit__(self, *trouble: object) -> None:
        self.stop()

    def script(self, *faults: str | None) -> None:
        """What the next requests for files get, before the rates count; None is a good answer."""
        assert {fault for fault in faults if fault} <= FAULTS.keys()
        with self._lock:
            self._script.extend(faults)

    def fault_of(self, path: str, span: tuple[int, int] | None) -> str | None:
        with self._lock:
            if self._script:
                return self._script.popleft()
            request = (path, span)
            number = self._came[request]
            self._came[request] += 1
            if self._failed[request] >= self.in_a_row:
                self._failed[request] = 0
                return None
            draw = random.Random(f"{self.seed} {path} {span} {number}").random()
            for fault, rate in self.rates.items():
                draw -= rate
                if draw < 0:
                    self._failed[request] += 1
                    return fault
            self._failed[request] = 0
            return None

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: FaultyServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is part of the play."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        target = self.server.owner.folder / unquote(urlsplit(self.path).path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        self._answer(200, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}, b"", None, None)

    def _serve(self) -> None:
        owner, url = self.server.owner, urlsplit(self.path)
        if "list-type" in parse_qs(url.query):
            return self._list(url.path.strip("/"), parse_qs(url.query))
        name = unquote(url.path).lstrip("/")
        if (owner.folder / name).is_dir():
            return self._answer(403, {}, b"a folder", None, None)
        try:
            file = open(owner.folder / name, "rb")  # noqa: SIM115
        except OSError:
            return self._answer(404, {}, b"no such file", None, None)
        with file:
            status = os.fstat(file.fileno())
            size, etag = status.st_size, owner.etags.get(name, f'"{status.st_mtime_ns:x}-{status.st_size:x}"')
            if self.headers.get("If-Match", etag) != etag:
                return self._answer(412, {}, b"another state", None, None)
            span = _span(self.headers.get("Range"), size)
            if span is not None and span[0] >= size:
                return self._answer(416, {"Content-Range": f"bytes */{size}"}, b"", span, None)
            modified = self.date_time_string(int(status.st_mtime))
            headers = {"ETag": etag, "Last-Modified": modified, "Accept-Ranges": "bytes"}
            self._fail_or_send(owner.fault_of(name, span), headers, file, size, span)

    def _fail_or_send(
        self, fault: str | None, headers: dict[str, str], file: BinaryIO, size: int, span: tuple[int, int] | None
    ) -> None:
        if fault in _STATUS:
            return self._answer(_STATUS[fault], {"Retry-After": "0"}, FAULTS[fault].encode(), span, fault)
        if fault == "reset":
            self.server.owner.note(Request(self.command, self.path, span, 0, fault, 0))
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if self.command == "HEAD":
            return self._answer(200, headers | {"Content-Length": str(size)}, b"", span, fault)
        if span is None or fault == "whole":
            return self._answer(200, headers, file.read(), span, fault)
        first, end = span
        if fault == "short":
            end = first + (end - first) // 2
        if fault == "shifted":
            first, end = (0, end - first) if first else (1, end + 1)
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        file.seek(first)
        self._answer(206, headers, file.read(end - first), span, fault)

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, span: tuple[int, int] | None, fault: str | None
    ) -> None:
        sent = len(body) // 2 if fault in ("cut", "stall") else len(body)
        self.server.owner.note(Request(self.command, self.path, span, status, fault, sent))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:sent])
        self.wfile.flush()
        if fault == "stall":
            self.server.owner.stopping.wait(self.server.owner.stall_s)
        if fault in ("cut", "stall"):
            self.close_connection = True

    def _list(self, bucket: str, query: Mapping[str, list[str]]) -> None:
        root = self.server.owner.folder / bucket
        (prefix,), (after,) = query.get("prefix", [""]), query.get("continuation-token", [""])
        found = sorted(
            (f"{Path(parent, name).relative_to(root)}", Path(parent, name).stat())
            for parent, _, names in os.walk(root)
            for name in names
        )
        found = [(key, status) for key, status in found if key.startswith(prefix) and key > after]
        more = ""
        if len(found) > _PAGE:
            more = f"<NextContinuationToken>{escape(found[_PAGE - 1][0])}</NextContinuationToken>"
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{status.st_mtime_ns:x}-{status.st_size:x}"</ETag><Size>{status.st_size}</Size></Contents>'
            for key, status in found[:_PAGE]
        )
        head = f"<Name>{bucket}</Name><IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}"
        body = f"<ListBucketResult>{head}{rows}</ListBucketResult>"
        self._answer(200, {"Content-Type": "application/xml"}, body.encode(), None, None)


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """``bytes=first-last`` -> first byte, the one behind the last."""
    if not header:
        return None
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(int(last) + 1, size) if last else size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=json.loads, default={})
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stall-s", type=float, default=30.0)
    given = parser.parse_args()
    server = FaultyServer(given.folder, given.faults, given.seed, stall_s=given.stall_s)
    print(server.address, flush=True)
    server.start().stopping.wait()


if __name__ == "__main__":
    main()
