"""The MONAI bundle: MONAI's own parser reads it, builds the network, loads the weights, and gives the same features."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_net_in_out

from evaluation.export.monai_bundle import loading, write_folder
from evaluation.export.source import Source
from imaging.views.augment import Augmentation
from ssl_methods.encoders.outputs import feature_dim, features

MakeSource = Callable[[str], Source]
REQUIRED = {
    "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors",
    "copyright", "network_data_format",
}  # fmt: skip
"""What MONAI's schema of metadata asks for."""


def parsed(folder: Path) -> Any:
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser.read_meta(str(folder / "configs" / "metadata.json"))
    parser["bundle_root"] = str(folder)
    parser["device"] = "cpu"
    return parser


@pytest.mark.parametrize("name", ["vit", "swin", "resnet_group", "monai_vit", "monai_swin"])
def test_the_configuration_gives_the_encoders_features(make_source: MakeSource, tmp_path: Path, name: str) -> None:
    source = make_source(name)
    write_folder(source, tmp_path, "card")
    parser = parsed(tmp_path)
    assert not parser.get_parsed_content("load").missing_keys
    network, standardise, pool = (parser.get_parsed_content(key) for key in ("network", "standardise", "pool"))
    noise = np.random.default_rng(0).uniform(0, 1, (2, *source.image.shape)).astype(np.float32)
    images = torch.from_numpy(noise)
    with torch.no_grad():
        found = pool(network.eval()(standardise(images)))
        expected = features(source.build(), Augmentation(source.image).plain(images))
    assert found.shape == (2, feature_dim(source.build()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_monai_verifies_shapes_and_types_by_the_metadata(make_source: MakeSource, tmp_path: Path) -> None:
    write_folder(make_source("vit"), tmp_path, "card")
    configs = tmp_path / "configs"
    files = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}
    verify_net_in_out("network_def", device="cpu", **files)
    value = json.loads((configs / "metadata.json").read_text())
    value["network_data_format"]["outputs"]["pred"]["num_channels"] = 25
    (configs / "metadata.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match="doesn't match: `25`"):
        verify_net_in_out("network_def", device="cpu", **files)


def test_the_metadata_has_what_the_schema_asks_for(make_source: MakeSource, tmp_path: Path) -> None:
    write_folder(make_source("monai_vit"), tmp_path, "card")
    value = json.loads((tmp_path / "configs" / "metadata.json").read_text())
    assert value.keys() >= REQUIRED
    assert value["version"] in value["changelog"]
    box = value["network_data_format"]["inputs"]["image"]
    assert (box["modality"], box["num_channels"], box["spatial_shape"]) == ("CT", 1, [8, 16, 16])
    assert value["network_data_format"]["outputs"]["pred"]["num_channels"] == 24


def test_card_and_licence_note_are_there_and_the_weights_are_tensors_only(
    make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source("vit")
    write_folder(source, tmp_path, "the card")
    assert (tmp_path / "docs" / "README.md").read_text() == "the card"
    assert "whoever publishes this bundle says so here" in " ".join((tmp_path / "LICENSE").read_text().split())
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    own = source.build().state_dict()
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[key], own[key]) for key in own)


def test_the_cards_code_runs(make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source("monai_vit")
    write_folder(source, tmp_path, "card")
    monkeypatch.chdir(tmp_path)
    images = torch.ones(1, *source.image.shape)
    names: dict[str, Any] = {"prepare": lambda pixels: images, "pixels": None}
    exec(loading(source).split("```python\n")[1].split("```")[0], names)
    with torch.no_grad():
        expected = features(source.build(), images)
    torch.testing.assert_close(names["features"].detach().cpu(), expected, rtol=1e-4, atol=1e-5)
