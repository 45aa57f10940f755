"""Index and read every tar of a folder, watched: ``python -m tests.faults.watched FOLDER``.

Prints, as JSON, what was read and everything that reading data must never do. The hook cannot be removed, so this is a
process of its own. Its memory is limited.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from megatron_qwen3vl.config.schema import SourceConfig
from megatron_qwen3vl.data.source import open_source
from megatron_qwen3vl.data.worker_process import limit_memory
from tests.unit.data.shard_helpers import LIMITS, build_indexes, model, tokenizer
from tests.unit.data.video_files import encode

MEMORY = 1 << 30
NEVER = (
    "pickle.", "subprocess.", "socket.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.link",
    "os.symlink", "os.chmod", "os.chown", "shutil.", "ctypes.dlopen", "urllib.",
)  # fmt: skip
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


class Watch:
    """``inside``: the only folder in which anything may be written."""

    def __init__(self, inside: Path) -> None:
        self.inside = str(inside)
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(NEVER):
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open":
            path, mode, flags = arguments
            writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or set("wax+") & set(mode or "")
            if writes and not self._is_inside(path):
                self.seen.append(f"open {path} {mode} {flags}")
            if not writes and str(path).startswith("/etc/"):
                self.seen.append(f"open {path}")
        elif event in WRITES and not self._is_inside(arguments[0]):
            self.seen.append(f"{event} {arguments!r:.200}")

    def _is_inside(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.inside)


def main(folder: Path) -> None:
    from megatron_qwen3vl.data.video import probe

    probe(encode(4))  # what is imported on first use is imported now
    watch = Watch(folder)
    limit_memory(MEMORY)
    sys.addaudithook(watch)
    read: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("*.tar")):
        build_indexes(path, tokenizer())
        source = open_source(SourceConfig("src", path.name, 1.0), folder, tokenizer(), LIMITS, model())
        samples = [source.read(row, True) for row in range(len(source))]
        read[path.stem] = {sample.key: sample.failure or "" for sample in samples}
    print(json.dumps({"seen": watch.seen, "read": read}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
