"""Triptychs of masked methods: what is hidden is hidden, what was seen stays, and no decoder means no triptych."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from evaluation.explain.image_panels import panels
from evaluation.explain.map_images import GAP, HIDDEN, THIRD, triptych_png
from evaluation.explain.restorations import restoration, restoration_panels, restoring_method
from evaluation.inputs import Encoder, read_inputs
from foundation.errors import RunError
from foundation.randomness import numpy_generator, torch_generator
from foundation.tensor_files import load_tensors, save_tensors
from imaging.config import ImageConfig
from ssl_methods import build_method
from ssl_methods.contrastive.simclr import SimCLRConfig
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.reconstruction.autoencoder import AutoencoderConfig
from ssl_methods.reconstruction.mae import MAEConfig

MakeRun = Callable[..., Path]
MAE = MAEConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=1, width=16, heads=2)


def thirds(png: bytes) -> list[NDArray[np.uint8]]:
    drawn = np.array(Image.open(io.BytesIO(png)).convert("RGB"))
    assert drawn.shape == (THIRD, 3 * THIRD + 2 * GAP, 3)
    return [drawn[:, start : start + THIRD] for start in range(0, drawn.shape[1], THIRD + GAP)]


def encoder_of(run: Path, arm: str = "federated") -> Encoder:
    return next(one for one in read_inputs(run, show=False).encoders if one.arm == arm)


@pytest.fixture
def run(make_run: MakeRun) -> Path:
    """With the decoder of MAE, untrained, beside the federated encoder."""
    run = make_run()
    one = encoder_of(run)
    method = build_method(MAE, one.config, one.image, 0)
    folder = one.weights.parent
    save_tensors(folder / "global.safetensors", method.shared_state())
    save_tensors(folder / "encoder.safetensors", method.encoder.state_dict())
    (folder / "study.yaml").write_text(yaml.safe_dump({"method": MAE.model_dump(mode="json")}))
    return run


def test_a_triptych_is_the_view_what_is_seen_and_what_is_restored() -> None:
    image = ImageConfig.model_validate(
        {"modality": "ct", "size": 32, "channels": 1, "augment": {"light_crop_scale": [1, 1], "horizontal_flip": 0}}
    )
    method = build_method(MAE, VIT, image, 0).eval()
    images = torch.from_numpy(numpy_generator(1, "images").uniform(size=(2, 1, 4, 4))).float()
    images = images.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)  # patches of one intensity
    found = restoration(method, images, torch_generator(0), "Federated")
    assert [panel.image for panel in found] == [1, 2] and method.augmentation.made is None
    for panel in found:
        assert panel.kind == "restoration" and panel.encoder == "Federated"
        assert panel.caption.endswith("Mean and contrast of each hidden patch are given, not restored.")
        whole, seen, restored = (each[16::32, 16::32].reshape(16, 3).astype(int) for each in thirds(panel.png or b""))
        blank = np.abs(seen - [0x93, 0xA0, 0xB4]).max(axis=1) < 12
        assert blank.sum() == 12  # three quarters are hidden
        assert np.abs(whole - seen)[~blank].max() < 12 and np.abs(whole - restored)[~blank].max() < 12
    again = restoration(method, images, torch_generator(0), "Federated")
    assert again == found


def test_the_run_s_own_decoder_restores(run: Path) -> None:
    method = restoring_method(encoder_of(run))
    assert method is not None
    stored, _ = load_tensors(encoder_of(run).weights.with_name("global.safetensors"))
    for name, tensor in method.shared_state().items():
        torch.testing.assert_close(tensor, stored[name])
    found = panels(run, count=2)
    assert [(one.image, one.encoder) for one in found if one.kind == "restoration"] == [
        (1, "Federated"), (2, "Federated"),
    ]  # fmt: skip
    assert found[7].kind == "restoration"  # the last of image 1, after 1 + 3 x 2


def test_other_weights_give_another_restoration(run: Path) -> None:
    one = encoder_of(run)
    images = torch.rand(1, *one.image.shape, generator=torch.Generator().manual_seed(1))
    before = restoration_panels(one, images)
    path = one.weights.with_name("global.safetensors")
    tensors, _ = load_tensors(path)
    save_tensors(path, {name: -3 * tensor for name, tensor in tensors.items()})
    assert before and restoration_panels(one, images) != before


def test_without_a_decoder_nothing_is_restored(run: Path) -> None:
    assert restoring_method(encoder_of(run, "random")) is None  # an encoder alone
    path = encoder_of(run).weights.with_name("global.safetensors")
    tensors, _ = load_tensors(path)
    save_tensors(path, {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")})
    assert restoring_method(encoder_of(run)) is None  # its sites kept the decoder
    path.unlink()
    assert restoration_panels(encoder_of(run), torch.zeros(1, 1, 16, 16)) == []


def test_a_method_that_restores_nothing_has_no_triptych(run: Path) -> None:
    one = encoder_of(run)
    config = SimCLRConfig()
    save_tensors(
        one.weights.with_name("global.safetensors"), build_method(config, one.config, one.image, 0).shared_state()
    )
    one.weights.with_name("study.yaml").write_text(yaml.safe_dump({"method": config.model_dump(mode="json")}))
    assert restoring_method(one) is None


def test_an_autoencoder_sees_all_that_it_restores() -> None:
    image = ImageConfig(modality="mri", size=32, channels=1)
    method = build_method(AutoencoderConfig(), VIT, image, 0).eval()
    images = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    (panel,) = restoration(method, images, torch_generator(0), "one")
    assert panel.caption == "A crop of the image; what the encoder sees of it; what the method makes of that."
    whole, seen, _ = thirds(panel.png or b"")
    np.testing.assert_array_equal(whole, seen)


@pytest.mark.parametrize("text", ["method: {name: mea}", "[", "title: none"])
def test_an_unreadable_study_is_one_line(run: Path, text: str) -> None:
    encoder_of(run).weights.with_name("study.yaml").write_text(text)
    with pytest.raises(RunError, match=r"study\.yaml: has no readable section method; ") as answer:
        panels(run)
    assert "\n" not in str(answer.value)


def test_hidden_pixels_have_a_colour_of_their_own() -> None:
    plane = np.full((16, 16), 0.5, dtype=np.float32)
    hidden = plane.copy()
    hidden[:8] = np.nan
    _, seen, dark = thirds(triptych_png([plane, hidden, plane / 2]))
    assert "#" + bytes(seen[0, 0].tolist()).hex() == HIDDEN
    assert seen[-1, -1].tolist() == [255] * 3 and abs(int(dark[0, 0, 0]) - 128) <= 1
    assert len(triptych_png([hidden] * 3)) < 30_000


def test_runs_without_a_study_file_show_the_rest(run: Path) -> None:
    encoder_of(run).weights.with_name("study.yaml").unlink()
    shutil.rmtree(run / "store")
    assert {panel.kind for panel in panels(run, count=1)} == {"image", "attention", "components", "likeness"}
