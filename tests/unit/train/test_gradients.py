"""The check of a stage's first step: what is trainable receives a gradient, what is frozen none."""

from __future__ import annotations

import pytest
import torch

from megatron_qwen3vl.train.gradients import GradientCheck

EVERYTHING = {"vision", "merger", "language"}


class Chunk(torch.nn.Module):
    """Three linear maps in a row under the names of a chunk; ``cut`` names the one whose output is detached."""

    def __init__(self, trainable: set[str], cut: str | None = None) -> None:
        super().__init__()
        self.vision = torch.nn.Module()
        self.vision.patch_embed = torch.nn.Linear(2, 2)
        self.vision.merger = torch.nn.Linear(2, 2)
        self.language = torch.nn.Linear(2, 2)
        self.parts = {"vision": self.vision.patch_embed, "merger": self.vision.merger, "language": self.language}
        self.cut = cut
        for name, part in self.parts.items():
            part.requires_grad_(name in trainable)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, part in self.parts.items():
            x = part(x).detach() if name == self.cut else part(x)
        return x


def problems(chunk: Chunk, modules: set[str], x: float = 1.0) -> list[str]:
    check = GradientCheck([chunk], modules)
    chunk(torch.full((3, 2), x)).sum().backward()
    return check.finish()


@pytest.mark.parametrize("trainable", [EVERYTHING, {"merger"}, {"language"}, {"vision", "language"}])
def test_sound_freezing_has_no_problems(trainable: set[str]) -> None:
    assert problems(Chunk(trainable), trainable) == []


def test_a_zero_gradient_is_a_gradient() -> None:
    assert problems(Chunk(EVERYTHING), EVERYTHING, x=0.0) == []


def test_what_is_cut_off_is_named() -> None:
    found = problems(Chunk(EVERYTHING, cut="merger"), EVERYTHING)
    names = ["vision.patch_embed.weight", "vision.patch_embed.bias", "vision.merger.weight", "vision.merger.bias"]
    assert found == [f"chunk0.{name} is trainable but received no gradient" for name in names]
    # Without a picture only the language model is due.
    assert problems(Chunk(EVERYTHING, cut="merger"), {"language"}) == []


def test_a_frozen_tensor_with_a_gradient_is_named() -> None:
    chunk = Chunk({"language"})
    check = GradientCheck([chunk], {"language"})
    chunk(torch.ones(3, 2)).sum().backward()
    chunk.vision.merger.weight.grad = torch.zeros(2, 2)
    assert check.finish() == ["chunk0.vision.merger.weight is frozen but received a gradient"]
