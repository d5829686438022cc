"""The ONNX file gives what the encoder gives, for any number of images, and is not there where it does not."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.export import onnx_file
from evaluation.export.onnx_file import loading, write_folder
from evaluation.export.source import Source
from foundation.errors import RunError
from ssl_methods.encoders.outputs import feature_dim, feature_maps, features

from ...tiers import slow

MakeSource = Callable[[str], Source]
Export = Callable[[str], tuple[Source, Path]]


@pytest.fixture(scope="module")
def runtime() -> Any:
    """ONNX Runtime, of the extra ``onnx``."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def export(runtime: Any, source_of: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """``export("vit")``: an encoder and its ONNX folder, written once for all tests: that takes seconds."""
    made: dict[str, tuple[Source, Path]] = {}

    def make(name: str) -> tuple[Source, Path]:
        if name not in made:
            made[name] = source_of(name), tmp_path_factory.mktemp(name)
            write_folder(*made[name], "card")
        return made[name]

    return make


@pytest.mark.parametrize("name", ["vit", slow("resnet"), slow("swin"), slow("monai_vit")])
def test_features_and_maps_are_the_encoders(runtime: Any, export: Export, name: str) -> None:
    source, folder = export(name)
    session = runtime.InferenceSession(folder / "encoder.onnx", providers=["CPUExecutionProvider"])
    encoder = source.build()
    for count in (1, 3, 4):
        noise = np.random.default_rng(count).standard_normal((count, *source.image.shape)).astype(np.float32)
        with torch.no_grad():
            images = torch.from_numpy(noise)
            expected = features(encoder, images), feature_maps(encoder, images)
        found = session.run(None, {"images": noise})
        assert found[0].shape == (count, feature_dim(encoder))
        for other, own in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(other), own, rtol=1e-4, atol=1e-5 * float(own.abs().max()))


def test_the_file_says_what_it_takes_and_no_path(runtime: Any, export: Export) -> None:
    """The exporter notes for every node from which line of which file it came."""
    source, folder = export("vit")
    data = (folder / "encoder.onnx").read_bytes()
    for place in (Path(onnx_file.__file__).parents[2], Path(torch.__file__).parents[1], source.run):
        assert str(place).encode() not in data
    assert b".py" not in data
    answer = runtime.InferenceSession(folder / "encoder.onnx").get_modelmeta().custom_metadata_map
    assert answer["input"] == "in [0, 1], then standardised: each channel of each image to mean 0 and deviation 1"
    assert (answer["modality"], answer["training_hash"]) == ("mri", "c0ffee")


@pytest.mark.slow
def test_the_same_encoder_gives_the_same_bytes(export: Export, tmp_path: Path) -> None:
    source, folder = export("vit")
    write_folder(source, tmp_path, "card")
    assert (tmp_path / "encoder.onnx").read_bytes() == (folder / "encoder.onnx").read_bytes()


def test_the_cards_code_runs(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = export("vit")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"prepare": lambda pixels: torch.zeros(1, 2, 32, 32), "pixels": None}
    exec(loading(source).split("```python\n")[1].split("```")[0], names)
    assert (names["features"].shape, names["feature_map"].shape) == ((1, 24), (1, 24, 4, 4))


@pytest.mark.slow
def test_a_file_with_other_outputs_is_not_written(
    runtime: Any, make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = onnx_file._Outputs.forward

    def wrong(self: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled, maps = forward(self, images)
        return pooled * 1.01, maps

    monkeypatch.setattr(onnx_file._Outputs, "forward", wrong)
    with pytest.raises(RunError, match=r"its features of 1 images differ by 1\.0e-02 of the largest value") as caught:
        write_folder(make_source("vit"), tmp_path / "out", "card")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_without_onnx_one_line_says_what_to_install(
    make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)  # as where it is not installed
    with pytest.raises(RunError, match=r"needs onnx, which is not here: pip install 'fedpretext\[onnx\]'"):
        write_folder(make_source("vit"), tmp_path / "out", "card")
    assert not (tmp_path / "out").exists()
