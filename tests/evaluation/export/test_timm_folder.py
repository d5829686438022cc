"""An exported folder loads in plain timm, or plain MONAI, without this project, and comes back as it went."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from torch import nn

from evaluation.export.model_card import model_card
from evaluation.export.source import Source, find_encoder
from evaluation.export.timm_folder import loading, read_folder, write_folder
from foundation.errors import RunError
from imaging.views.augment import Augmentation
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.encoders.starting_weights import fit_weights, read_weights
from ssl_methods.encoders.timm_encoders import build_encoder

from ...tiers import slow

Export = Callable[[str], tuple[Source, Path]]
ALL = ("vit", "resnet", "resnet_group", "swin", "monai_vit", "monai_swin")
FLAT = ("vit", "resnet", "swin")


@pytest.fixture
def export(make_source: Callable[[str], Source], tmp_path: Path) -> Export:
    """``export("vit")``: an encoder, and the folder that it was written to."""

    def make(name: str) -> tuple[Source, Path]:
        source = make_source(name)
        write_folder(source, tmp_path / name, model_card(source.run, loading=loading(source)))
        return source, tmp_path / name

    return make


def plain_images(source: Source, count: int = 3) -> torch.Tensor:
    """Images as the encoder takes them."""
    noise = np.random.default_rng(2).uniform(0, 1, (count, *source.image.shape)).astype(np.float32)
    return Augmentation(source.image).plain(torch.from_numpy(noise))


@pytest.mark.parametrize("name", ["vit", slow("monai_vit"), slow("resnet_group")])
def test_the_cards_code_gives_the_encoders_features_without_this_project(
    export: Export,
    name: str,
    pixels_of: Callable[[Source], np.ndarray[Any, Any]],
    read_by_a_stranger: Callable[..., torch.Tensor],
) -> None:
    source, folder = export(name)
    pixels = pixels_of(source)
    found = read_by_a_stranger(folder / "README.md", folder, pixels)
    names: dict[str, Any] = {}
    exec((folder / "README.md").read_text().split("```python\n")[2].split("```")[0], names)
    with torch.no_grad():
        expected = features(plainly_laid_out(source), names["prepare"](pixels))
    assert found.shape == (1, feature_dim(source.build()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def plainly_laid_out(source: Source) -> nn.Module:
    """The encoder with its weights in timm's order: with the channels last, sums round otherwise."""
    return source.build().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("name", FLAT)
def test_timm_builds_the_same_encoder_from_the_folder(export: Export, name: str) -> None:
    source, folder = export(name)
    encoder = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = plain_images(source)
    with torch.no_grad():
        assert torch.equal(encoder(images), plainly_laid_out(source)(images))
    own, theirs = source.build().state_dict(), encoder.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)


def test_the_cards_line_builds_an_encoder_with_group_norm(export: Export) -> None:
    """config.json has no place for it: without the card's argument timm finds no statistics in the file and stops."""
    source, folder = export("resnet_group")
    names: dict[str, Any] = {}
    lines = loading(source).replace("FOLDER", str(folder)).split("```python\n")[1].split("```")[0]
    exec(lines.split("features =")[0], names)
    images = plain_images(source)
    with torch.no_grad():
        assert torch.equal(names["encoder"](images), plainly_laid_out(source)(images))
    assert "`resnet10t` (norm group)" in (folder / "README.md").read_text()
    with pytest.raises(RuntimeError, match="running_mean"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


@pytest.mark.parametrize("name", FLAT)
def test_timm_gives_it_a_fresh_head(export: Export, name: str) -> None:
    source, folder = export(name)
    classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=2).eval()
    images = plain_images(source)
    with torch.no_grad():
        assert classifier(images).shape == (3, 2)
        body = classifier.forward_head(classifier.forward_features(images), pre_logits=True)
        assert torch.equal(body, plainly_laid_out(source)(images))


def test_what_timm_is_told_of_the_input(export: Export) -> None:
    """MRI is standardised image by image, which no constant can say; endoscopy by constants."""
    cards = {}
    for name in ("vit", "swin"):
        _, folder = export(name)
        cards[name] = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert cards["vit"]["input_size"] == [2, 32, 32]
    assert (cards["vit"]["mean"], cards["vit"]["std"]) == ([0.0, 0.0], [1.0, 1.0])
    assert "each channel of each image" in cards["vit"]["description"]
    assert (cards["swin"]["mean"], cards["swin"]["std"]) == ([0.5] * 3, [0.25] * 3)
    assert (cards["vit"]["fixed_input_size"], cards["swin"]["fixed_input_size"]) == (True, False)


@pytest.mark.parametrize("name", ALL)
def test_a_folder_is_a_starting_point_and_a_checkpoint(export: Export, name: str) -> None:
    source, folder = export(name)
    config, image, weights = read_folder(folder)
    assert (config, image) == (source.config, source.image)
    fresh = build_encoder(config, image).eval()
    fitted = fit_weights(fresh, read_weights(weights))
    assert (fitted.fresh, fitted.unused, fitted.adapted) == ((), (), ())
    images = plain_images(source, 2)
    with torch.no_grad():
        assert torch.equal(features(fresh, images), features(source.build(), images))


def test_the_front_matter_is_hugging_faces(export: Export) -> None:
    for name, library in (("vit", "timm"), ("monai_vit", "monai")):
        _, folder = export(name)
        head = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
        assert head["library_name"] == library
        assert head["license"] == "other"
        assert "federated-learning" in head["tags"]


def test_nothing_in_the_folder_names_the_arms_site(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """The encoder of one site alone: its arm is named after the site."""
    run = make_run("vit", arm="local-only-Northgate", kind="local-only")
    source = find_encoder(run, "local-only-Northgate")
    write_folder(source, tmp_path / "out", model_card(run, "local-only-Northgate", loading=loading(source)))
    for path in (tmp_path / "out").iterdir():
        assert b"northgate" not in path.read_bytes().lower(), path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "config.json").write_text('{"architecture": "resnet18"}'), "has no section 'fedp"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "has no section 'fedpretext'"),
        (lambda folder: (folder / "config.json").write_text('{"fedpretext": {"encoder": {}}}'), "does not describe an"),
        (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "config.json").unlink(), "is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "is missing beside its config.json"),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_line(export: Export, change: Callable[[Path], object], said: str) -> None:
    _, folder = export("vit")
    change(folder)
    with pytest.raises(RunError, match=said) as caught:
        read_folder(folder)
    assert "\n" not in str(caught.value)
