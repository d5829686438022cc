"""timm is importable, and only the one known failure of torchvision is worked around."""

import importlib
import runpy
from pathlib import Path

import pytest
import torch

import foundation.vision_import as vision_import


def test_timm_builds_a_model() -> None:
    encoder = vision_import.timm.create_model("resnet10t", num_classes=0).eval()
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 512)


@pytest.mark.parametrize("name", vision_import.BOX_OPERATORS)
def test_a_declared_operator_is_never_silently_wrong(name: str) -> None:
    operator = getattr(torch.ops.torchvision, name)
    boxes, scores = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]]), torch.tensor([0.5, 0.9])
    try:
        kept = operator(boxes, scores, 0.5).tolist()
    except NotImplementedError:
        return  # declared by name only, or not made for this type
    assert kept == [1]


def test_other_failures_of_torchvision_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError(f"{name} is damaged")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="torchvision is damaged"):
        runpy.run_path(str(Path(vision_import.__file__)))
