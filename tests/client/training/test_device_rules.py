"""On a GPU: one copy for a step's images, one for its random choices, no waiting, no mixing; and the CPU's values.

A round of every method is trained on the CPU and on a pretended GPU (tests/pretend_gpu.py).
"""

import copy
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from client.privacy.training import train_private_round
from client.training.round import TrainingContext, train_round
from federation.algorithms import build_algorithm
from federation.privacy import noise
from federation.study import Study, study_from
from imaging.config import Modality
from imaging.store import TOP, TensorStore
from ssl_methods import METHODS, build_method, method_type
from ssl_methods.method_config import MethodConfig, TwoViewConfig

from ...conftest import STUDY
from ...pretend_gpu import GPU, PretendGpu

CPU = torch.device("cpu")
IMAGES, STEPS = 8, 3
ENCODERS: dict[str, dict[str, Any]] = {
    "vit": STUDY["encoder"],
    "convolutional": {"name": "resnet10t"},
    "swin": {"name": "swin_tiny_patch4_window7_224", "patch_size": 2, "depth": 1, "width": 12, "heads": 2},
    "vit 3-D": {"name": "monai_vit", "patch_size": 4, "depth": 1, "width": 24, "heads": 2},
    "swin 3-D": {"name": "monai_swin_unetr", "depth": 1, "width": 12, "heads": 3},
}
SMALL: dict[str, dict[str, Any]] = {
    "mae": {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
    "ijepa": {"predictor_width": 24, "predictor_depth": 1, "predictor_heads": 2},
    "dino": {"small_crops": 2, "outputs": 16},
    "ibot": {"small_crops": 2, "outputs": 16},
    "swav": {"small_crops": 2, "prototypes": 16},
    "lejepa": {"small_crops": 2, "directions": 16},
    "jigsaw": {"permutations": 8},
}
QUICK = [
    (name, "swin 3-D" if 2 not in facts.dimensions else "vit" if "vit" in facts.encoders else "convolutional")
    for name, facts in METHODS.items()
]
EVERY = [
    (name, encoder)
    for name in METHODS
    for encoder in ENCODERS
    if encoder.split()[0] in METHODS[name].encoders and (3 if " " in encoder else 2) in METHODS[name].dimensions
]


def settings(name: str) -> type[MethodConfig]:
    return method_type(name).Config


class Memory(TensorStore):
    """Smooth images in memory: two patients of two series, each of two images."""

    def __init__(self, study: Study) -> None:
        number = np.arange(IMAGES)
        table = pd.DataFrame({
            "image": [f"{n}.png" for n in number], "patient": [f"p{n // 4}" for n in number],
            "study": [f"t{n // 2}" for n in number], "series": [f"s{n // 2}" for n in number],
            "position": number % 2, "date": [f"2024-01-{1 + n:02d}" for n in number],
        })  # fmt: skip
        super().__init__(Path(), table, number, number // 4, number // 2, number // 2)
        shape = study.image.shape
        coarse = torch.rand(IMAGES, *(max(1, side // 4) for side in shape), generator=torch.Generator().manual_seed(0))
        mode = "bilinear" if len(shape) == 3 else "trilinear"
        smooth = torch.nn.functional.interpolate(coarse[:, :1], size=shape[1:], mode=mode).expand(-1, *shape)
        object.__setattr__(self, "images", (smooth * TOP).round().to(torch.uint16))

    def stored(self, indices: Any) -> Tensor:
        """Those images."""
        return torch.from_numpy(self.__dict__["images"].numpy()[np.asarray(indices)])


def study(name: str, encoder: str = "vit", modality: Modality = "mri", **options: Any) -> Study:
    """A small study; ``options`` of the method."""
    raw = copy.deepcopy(STUDY)
    size = {"swin": 64, "swin 3-D": 16, "vit 3-D": 16}.get(encoder, 32)
    channels = 3 if modality in ("histopathology", "dermoscopy") and " " not in encoder else 1
    raw["image"] = {"modality": modality, "size": size, "channels": channels}
    if " " in encoder:
        raw["image"] |= {"depth": 8, "channels": 1}
    raw["encoder"] = ENCODERS[encoder]
    raw["method"] = {"name": name, **SMALL.get(name, {}), **options}
    raw["training"] = {
        "batch": 4, "steps": STEPS, "epochs": None, "learning_rate": 0.001, "precision": "float32", "clip": 1.0,
        "threads": 1,
    }  # fmt: skip
    return study_from(raw, "test")


def trained(given: Study, device: torch.device, gpu: PretendGpu | None = None) -> tuple[dict[str, Tensor], Any, Any]:
    """State and metrics after the second round, and what the last step copied and waited for."""
    method = build_method(given.method, given.encoder, given.image, given.seed)
    seen: list[tuple[Counter[str], Counter[str]]] = []
    before, after = method.before_step, method.after_step

    def note() -> None:
        if gpu is not None:
            seen.append((gpu.copies.copy(), gpu.waits.copy()))

    def before_step(progress: float) -> None:
        note()
        before(progress)

    def after_step(progress: float, images: int) -> None:
        after(progress, images)
        note()

    method.before_step, method.after_step = before_step, after_step  # type: ignore[method-assign]
    context = TrainingContext(given, method, build_algorithm(given.algorithm), Memory(given), "A", device)
    metrics = train_round(context, 2, {}).metrics
    last = [seen[-1][part] - seen[-2][part] for part in range(2)] if seen else None
    return method.state_dict(), {name: value for name, value in metrics.items() if name != "seconds"}, last


def check(given: Study) -> None:
    """The rules, and that the values are those of the CPU."""
    state, metrics, _ = trained(given, CPU)
    with PretendGpu().running() as gpu:
        there, pretended, (copies, waits) = trained(given, GPU, gpu)
    assert not gpu.faults, "\n".join(gpu.faults)
    assert copies.total() <= 2, copies
    assert not waits, waits
    assert pretended == metrics
    for name, value in state.items():
        assert torch.equal(there[name].as_subclass(Tensor), value), name


@pytest.mark.parametrize(("name", "encoder"), QUICK)
def test_a_step_copies_twice_and_waits_for_nothing(name: str, encoder: str) -> None:
    check(study(name, encoder))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "encoder"), [pair for pair in EVERY if pair not in QUICK])
def test_over_every_kind_of_encoder(name: str, encoder: str) -> None:
    check(study(name, encoder))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["vit", "vit 3-D"])
@pytest.mark.parametrize("modality", get_args(Modality))
def test_under_every_preset(modality: Modality, encoder: str) -> None:
    check(study("simclr", encoder, modality))
    check(study("mae", encoder, modality))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "encoder"), [pair for pair in EVERY if pair[0] != "combine"])
def test_with_a_focus(name: str, encoder: str) -> None:
    check(study(name, encoder, focus="entropy"))
    if METHODS[name].has_attention_teacher and encoder == "vit":
        check(study(name, encoder, focus="attention"))


@pytest.mark.slow
@pytest.mark.parametrize("relation", ["patient", "study", "series", "neighbour"])
@pytest.mark.parametrize(("name", "encoder"), [pair for pair in EVERY if issubclass(settings(pair[0]), TwoViewConfig)])
def test_with_partners(name: str, encoder: str, relation: str) -> None:
    check(study(name, encoder, positives=relation))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swav", {"queue": 4, "queue_from": 0.0}),
        ("ibot", {"gram_weight": 1.0, "gram_from": 0.0, "koleo_weight": 0.1}),
        ("rotation", {"copies": "one"}),
        ("slice_order", {"by": "date", "gap_weight": 1.0}),
        ("mae", {"norm_pixels": False}),
        ("combine", {"methods": [{"method": {"name": "dino"}}, {"method": {"name": "ijepa", "focus": "entropy"}}]}),
    ],
)
def test_under_settings_of_the_methods(name: str, options: dict[str, Any]) -> None:
    check(study(name, **options))


def test_a_private_step_mixes_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "secure_generator", lambda: torch.Generator().manual_seed(0))
    raw = study("mae").model_dump(mode="json", exclude_unset=True)
    raw["training"]["clip"] = None
    raw["privacy"] = {"unit": "patient", "epsilon": 100.0, "patients": 4, "patients_per_step": 2}
    given = study_from(raw, "test")
    method = build_method(given.method, given.encoder, given.image, given.seed)
    with PretendGpu().running() as gpu:
        context = TrainingContext(given, method, build_algorithm(given.algorithm), Memory(given), "A", GPU)
        train_private_round(context, 1, {})
    assert not gpu.faults, "\n".join(gpu.faults)


def test_the_pretended_gpu_sees_what_it_should() -> None:
    numbers = torch.rand(4)
    with PretendGpu().running() as gpu:
        there = numbers.to(GPU)
        assert there.device == GPU and gpu.copies.total() == 1
        doubled = there * 2 + torch.tensor(1.0)
        assert not gpu.faults and not gpu.waits and doubled.device == GPU
        there + numbers
        torch.cat([there, numbers])
        torch.rand(2, device=GPU, generator=torch.Generator())
        assert len(gpu.faults) == 3 and all(line.startswith("tests/client/training/") for line in gpu.faults)
        float(there[0]), there[there > 0.5], there.nonzero(), there.cpu(), bool(there.any())
        assert gpu.waits.total() == 5 and len(gpu.faults) == 3
        there[torch.tensor([0, 1])]
        assert gpu.copies.total() == 2
    assert torch.equal(doubled.as_subclass(Tensor), numbers * 2 + 1)
