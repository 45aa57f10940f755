"""The formats by name. Each is one module of this package."""

from __future__ import annotations

from megatron_qwen3vl.importers.format import Format

FORMATS: dict[str, Format] = {}
