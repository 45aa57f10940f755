"""transformers' models, saved by transformers, and one process's groups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from convert_cases import Saved, config_of, save_reference
from reference import KINDS, PLAIN, model_config, transformers_model

from megatron_qwen3vl.parallel.device import start_device
from megatron_qwen3vl.parallel.groups import Groups, shutdown, start_groups
from megatron_qwen3vl.parallel.layout import Layout


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    started = start_groups(Layout.from_config(PLAIN, 1), start_device("cpu"))
    yield started
    started.stop()
    shutdown()


@pytest.fixture(scope="session")
def references() -> dict[str, torch.nn.Module]:
    """transformers' models in float32; every norm and bias random."""
    return {kind: transformers_model(model_config(kind)) for kind in KINDS}


@pytest.fixture(
    scope="session",
    params=[(k, d, s) for k in KINDS for d, s in (("float32", "1GB"), ("bfloat16", "60KB"))],
    ids=lambda p: "-".join(p),
)
def saved(request: pytest.FixtureRequest, references: dict, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    kind, dtype, size = request.param
    folder = save_reference(references[kind], tmp_path_factory.mktemp("hf") / "source", dtype, size)
    return Saved(folder, config_of(kind), kind, dtype)
