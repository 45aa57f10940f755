"""Where builders find what others made: inside installed Python packages, or in Debian packages that a recipe names.

Nothing of it is part of this repository. A Debian package is fetched with apt-get and unpacked, not installed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path

from megatron_qwen3vl.errors import UserError


def package_folder(module: str) -> Path | None:
    """The folder of an installed Python package, without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(module)
    return None if spec is None or not spec.submodule_search_locations else Path(spec.submodule_search_locations[0])


def debian_folder(package: str) -> Path:
    """A Debian package's files, unpacked below the user's cache folder; fetched when they are not there yet.

    Raises:
        UserError: apt-get or dpkg is missing, or the package cannot be had.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron_qwen3vl" / "debian"
    folder = cache / package
    if not folder.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".") as name:
                downloads = Path(name)
                fetch = ["apt-get", "download", package]
                subprocess.run(fetch, cwd=downloads, check=True, capture_output=True, text=True)
                (archive,) = downloads.glob("*.deb")
                subprocess.run(["dpkg", "-x", archive, downloads / "files"], check=True, capture_output=True, text=True)
                (downloads / "files").rename(folder)
        except subprocess.CalledProcessError as error:
            reason = (error.stderr or "").strip().splitlines()[-1:] or ["no reason given"]
            raise UserError(f"debian package {package}: {reason[0]}; try apt-get update first") from error
        except OSError as error:
            raise UserError(f"debian package {package}: apt-get and dpkg are needed to fetch it: {error}") from error
    return folder
