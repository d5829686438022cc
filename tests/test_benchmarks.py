"""What the benchmarks count and cover: no timing here."""

import pytest
import torch
from pydantic import TypeAdapter

from benchmarks.comparisons import sweep
from benchmarks.throughput import batch_of, passes_a_image, suits
from imaging.config import ImageConfig
from ssl_methods import METHODS, AnyMethodConfig, build_method
from ssl_methods.encoders.table import EncoderConfig

IMAGE = ImageConfig(modality="mri", size=32, channels=1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=1, width=24, heads=2)


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("mae", 1.0),
        ("simclr", 2.0),
        ("ijepa", 1 + 1 / 3),  # the target encoder's pass has no gradient
        ("byol", 2 + 2 / 3),
        ("moco_v2", 1 + 1 / 3),
        ("rotation", 4.0),
    ],
)
def test_passes_by_hand(name: str, passes: float) -> None:
    method = build_method(TypeAdapter(AnyMethodConfig).validate_python({"name": name}), VIT, IMAGE, 0)
    assert passes_a_image(method, batch_of(IMAGE, 4, torch.device("cpu"))) == pytest.approx(passes)


def test_a_small_crop_counts_by_its_arithmetic() -> None:
    config = TypeAdapter(AnyMethodConfig).validate_python({"name": "dino", "small_crops": 2, "small_size": 16})
    method = build_method(config, VIT, IMAGE, 0)
    # Two large crops seen twice, two of a quarter of the patches seen once: a quarter or, with attention, less.
    passes = passes_a_image(method, batch_of(IMAGE, 4, torch.device("cpu")))
    assert 2 + 2 / 3 + 2 * 0.2 < passes <= 2 + 2 / 3 + 2 * 0.25 + 1e-6


def test_the_sweep_holds_every_method_of_images_and_two_on_both_encoders() -> None:
    cells = list(sweep.cells())
    flat = {name for name, method in METHODS.items() if 2 in method.dimensions}
    swept = {cell.method for cell in cells}
    assert swept == flat, f"put {flat ^ swept} right in ON_RESNET or ON_VIT of benchmarks/comparisons/sweep.py"
    assert flat == {name for name in METHODS if suits(name)}
    both = [name for name in flat if sum(c.method == name and c.dataset == "lgg_mri_128" for c in cells) == 2]
    assert sorted(both) == ["byol", "simclr"]
    assert len({(c.method, c.dataset, c.encoder["name"]) for c in cells}) == len(cells)


def test_the_page_names_what_is_not_shown() -> None:
    row = {
        "method": "mae", "family": "reconstruction", "dataset": "busi_224", "encoder": "vit", "protocol": "finetune",
        "rounds": 3, "federated": 0.7, "random": 0.65, "difference": 0.05, "low": -0.01, "high": 0.11, "units": 30,
        "seconds": 100, "study": "a", "commit": "b",
    }  # fmt: skip
    page = sweep.page([row, row | {"method": "byol", "low": 0.01}])
    assert (
        "| mae | reconstruction | vit | finetune | 0.700 | 0.650 | +0.050 (-0.010 to +0.110) | 30 | not shown |" in page
    )
    assert "| byol |" in page and "| passes |" in page
