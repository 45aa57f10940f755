"""Where the YAML of the project lies: beside the package in a checkout, inside it when installed from a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def resource(name: str) -> Path:
    """``configs`` or ``data_recipes/...``, whether or not it exists; the wheel's copy wins over a neighbour of the package."""
    installed = _PACKAGE / name
    return installed if installed.exists() else _PACKAGE.parent / name


def find_path(name: str) -> str:
    """A path from a configuration: as it stands when it exists seen from the working directory, else the project's own file
    of that name, else unchanged (the check names it as missing)."""
    if Path(name).is_absolute() or Path(name).exists():
        return name
    own = resource(name)
    return str(own) if own.exists() else name
