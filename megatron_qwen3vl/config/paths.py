"""Where the YAML of the project lies: beside the package in a checkout, inside it when installed from a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def resource(name: str) -> Path:
    """``configs`` or ``data_recipes/...``, whether or not it exists; a copy inside the package wins."""
    installed = _PACKAGE / name
    return installed if installed.exists() else _PACKAGE.parent / name


def find_path(name: str) -> Path:
    """The file or folder that a configuration names: as seen from the working directory when it exists there, else the
    project's own of that name (``data_recipes/mixtures/s0.yaml`` works from anywhere), else unchanged."""
    path = Path(name)
    if path.is_absolute() or path.exists():
        return path
    own = resource(name)
    return own if own.exists() else path
