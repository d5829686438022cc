"""Coefficients as published, and those that deviate with a reason in their description."""

from typing import Any

import pytest

from ssl_methods import method_type

PUBLISHED: dict[str, dict[str, Any]] = {
    "simclr": {"temperature": 0.2, "projector_layers": 3, "projection": 128},  # the paper: .1 to .5
    "moco_v2": {"temperature": 0.2, "momentum": 0.999, "projection": 128},
    "moco_v3": {"temperature": 0.2, "momentum": 0.99, "freeze_patches": True},
    "byol": {"momentum": 0.996, "projection": 256},
    "barlow_twins": {"redundancy": 0.0051},
    "vicreg": {"invariance": 25.0, "variance": 25.0, "covariance": 1.0},
    "lejepa": {"weight": 0.05, "directions": 1024, "projection": 16, "small_scale": (0.05, 0.3)},
    "swav": {"temperature": 0.1, "sinkhorn_rounds": 3, "small_crops": 6},
    "dino": {
        "student_temperature": 0.1,
        "momentum": 0.996,
        "centre_momentum": 0.9,
        "teacher_warmup": 0.3,
        "small_crops": 8,
        "small_scale": (0.05, 0.4),
    },
    "ibot": {"student_temperature": 0.1, "momentum": 0.996, "centre_momentum": 0.9, "patch_weight": 1.0},
    "ijepa": {
        "targets": 4,
        "target_scale": (0.15, 0.2),
        "target_aspect": (0.75, 1.5),
        "context_scale": (0.85, 1.0),
        "momentum": 0.996,
    },
    "mae": {"mask_ratio": 0.75, "norm_pixels": True},
    "simmim": {"mask_ratio": 0.6},
    "spark": {"mask_ratio": 0.6, "norm_pixels": True},
    "models_genesis": {"bezier": 0.9, "shuffle": 0.5, "paint": 0.9, "outpaint": 0.8},
    "swin_unetr": {
        "rotation_weight": 1.0,
        "contrast_weight": 1.0,
        "inpainting_weight": 1.0,
        "temperature": 0.5,
        "dropped": 0.3,
    },
}
DEVIATING: dict[str, dict[str, tuple[Any, str]]] = {
    "swav": {"epsilon": (0.01, "paper's .05")},
    "dino": {
        "teacher_temperature": (0.02, "paper's .07"),
        "teacher_temperature_start": (0.02, "from .04 to .07"),
        "outputs": (2048, "paper's 65536"),
    },
    "ibot": {
        "teacher_temperature": (0.02, "paper's .07"),
        "koleo_weight": (0.0, "DINOv2 has .1"),
        "gram_weight": (0.0, "DINOv3: 2"),
    },
    "moco_v2": {"queue": (512, "paper's 65536")},
    "lejepa": {"small_crops": (4, "authors' 6"), "projector_width": (512, "authors' 2048")},
}
"""What is set otherwise, and how the description says what the paper has."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_coefficients_are_the_papers(name: str) -> None:
    config = method_type(name).Config()
    assert {key: getattr(config, key) for key in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", DEVIATING)
def test_a_coefficient_that_is_not_the_papers_says_so(name: str) -> None:
    config = method_type(name).Config()
    for key, (value, said) in DEVIATING[name].items():
        assert getattr(config, key) == value
        assert said in (type(config).model_fields[key].description or "")
