"""The image sheet: it shows what ``make_views`` gives, outlines where views were cut, and leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from foundation.errors import FedpretextError, RunError, StudyError
from foundation.randomness import torch_generator
from foundation.tensor_files import save_tensors
from imaging.config import ImageConfig
from imaging.views.augment import Augmentation
from simulation.preview import drawing as image_sheet
from simulation.preview import sheet as subject
from simulation.preview.drawing import Block, Panel
from simulation.preview.sheet import preview
from simulation.sites.findings import findings_of
from ssl_methods import METHODS, build_method, method_type
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch
from ssl_methods.reconstruction.mae import only_patches

Call = Callable[..., Any]


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[list[Block]]:
    """The blocks of every sheet that is written."""
    seen: list[list[Block]] = []

    def note(path: Path, title: str, caption: list[str], blocks: list[Block]) -> None:
        seen.append(list(blocks))
        image_sheet.write_sheet(path, title, caption, blocks)

    monkeypatch.setattr(subject, "write_sheet", note)
    return seen


def panels(block: Block) -> dict[str, Panel]:
    return {panel.title: panel for panel in block.panels}


def test_the_command_writes_a_sheet_and_says_what_is_on_it(fedpretext: Call, study_file: Path, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    said = fedpretext("preview", study_file, "--out", "sheet.png", "--images", "2")
    assert said.code == 0, said.err
    assert [line.split(":")[0] for line in said.out.splitlines()[:3]] == ["image 1", "image 2", "sheet"]
    assert "nothing has left this machine" in said.out
    assert not any("away-" in line for line in said.out.splitlines()), "of a hospital that is left out nothing is shown"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and min(sheet.size) > 400
        assert not sheet.info.keys() & {"Software", "Title", "Author"}
        assert np.asarray(sheet.convert("L")).std() > 20
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == {tmp_path / "sheet.png"}


def test_the_same_study_gives_the_same_sheet(study_file: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    for out in (one, two):
        preview(study_file, out=out, images=1)
    assert one.read_bytes() == two.read_bytes()


def test_a_hospital_sees_its_own_images_and_keeps_nothing_else(
    fedpretext: Call, hospital: Call, study_file: Path, tmp_path: Path
) -> None:
    site = hospital("A", images=9, patients=3)
    said = fedpretext("preview", study_file, "--site", site, "--out", "sheet.png")
    assert said.code == 0, said.err
    assert all(line.split(": ")[1].endswith(".png") for line in said.out.splitlines()[:4])
    assert (tmp_path / "sheet.png").is_file()
    assert not [path for path in tmp_path.rglob("*") if "preview" in path.name or path.name == "images.npy"]
    assert not (site.parent / "state").exists()


def test_a_masked_method_is_shown_by_what_it_hides(sheets: list[list[Block]], study_file: Path, tmp_path: Path) -> None:
    preview(study_file, out=tmp_path / "s.png", images=3)
    assert len(sheets[0]) == 3
    for block in sheets[0]:
        shown = panels(block)
        assert list(shown) == ["original", "view", "encoder sees", "restored"]
        view, seen, restored = (shown[name].pixels for name in ("view", "encoder sees", "restored"))
        hidden = np.isnan(seen)
        assert hidden.mean() == 0.75
        assert (seen[~hidden] == view[~hidden]).all() and (restored[~hidden] == view[~hidden]).all()
        assert np.isfinite(restored).all() and np.abs(restored - view)[hidden].max() > 0.01
        assert view.min() >= -1e-5 and view.max() <= 1 + 1e-5, "intensities as they were, not standardised"
        assert shown["view"].view == shown["encoder sees"].view == 0 and list(shown["original"].outlines) == [0]


def test_a_view_is_what_lies_in_its_outline(sheets: list[list[Block]], study_file: Path, tmp_path: Path) -> None:
    """Without turns and intensities: the outline's box, cut out of the original and resized, is the view."""
    preview(study_file, ["image.augment={horizontal_flip: 0.5}"], out=tmp_path / "s.png", images=4)
    for block in sheets[0]:
        shown = panels(block)
        original, view, corners = shown["original"].pixels, shown["view"].pixels, shown["original"].outlines[0]
        side = len(view)
        ends = corners[2] - corners[0]  # negative where the view is flipped
        at = [corners[0, axis] + (np.arange(side) + 0.5) / side * ends[axis] for axis in (0, 1)]
        x, y = (np.clip(each, 0, side - 1) for each in at)
        left, top = np.floor(x).astype(int).clip(max=side - 2), np.floor(y).astype(int).clip(max=side - 2)
        across, down = x - left, (y - top)[:, None]
        upper = original[top][:, left] * (1 - across) + original[top][:, left + 1] * across
        lower = original[top + 1][:, left] * (1 - across) + original[top + 1][:, left + 1] * across
        expected = upper * (1 - down) + lower * down
        assert np.abs(view - expected)[1:-1, 1:-1].max() < 1e-4


def test_two_views_have_two_outlines_and_their_frames(
    sheets: list[list[Block]], study_file: Path, tmp_path: Path
) -> None:
    changes = ["method={name: simclr}", "encoder={name: resnet10t}"]
    preview(study_file, changes, out=tmp_path / "s.png", images=1)
    preview(study_file, [*changes, "method.positives=patient"], out=tmp_path / "s.png", images=1)
    alone, together = (panels(sheet[0]) for sheet in sheets)
    assert list(alone["original"].outlines) == [0, 1]
    assert alone["first"].view == 0 and alone["second"].view == 1
    assert list(together["original"].outlines) == [0] and list(together["its partner"].outlines) == [1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_shows_images(name: str) -> None:
    """Some ``[C, ...]`` shown_image with a title of its own; NaN is the only number that is not finite."""
    facts = METHODS[name]
    volumes = 2 not in facts.dimensions
    image = ImageConfig(modality="mri", size=32, channels=2, depth=32 if volumes else None)
    if volumes:
        encoder = EncoderConfig(name="monai_swin_unetr", width=12)
    elif "vit" in facts.encoders:
        encoder = EncoderConfig(name="vit_tiny_patch16_224", patch_size=4, depth=1, width=24, heads=2)
    else:
        encoder = EncoderConfig(name="resnet10t")
    method = build_method(method_type(name).Config(), encoder, image, seed=0)
    images = torch.rand(3, *image.shape, generator=torch_generator(0))
    codes = torch.arange(3)
    others = None if method.config.partner is None else images.flip(0)
    batch = Batch(images, codes, codes, codes, others, None if others is None else torch.ones(3))
    method.before_step(0.0)
    views = method.make_views(batch, torch_generator(1))
    shown = method.show(views, 1)
    assert shown and len({title for title, _ in shown}) == len(shown)
    for _, shown_image in shown:
        assert shown_image.ndim == len(image.shape) and len(shown_image) == 2
        assert not shown_image.isinf().any() and shown_image.isfinite().any()


def test_only_patches_keeps_those_patches() -> None:
    image = torch.arange(2 * 8 * 8.0).view(2, 8, 8)
    shown = only_patches(image, torch.tensor([0, 3]), 4)
    assert torch.equal(shown[:, :4, :4], image[:, :4, :4]) and torch.equal(shown[:, 4:, 4:], image[:, 4:, 4:])
    assert shown[:, :4, 4:].isnan().all() and shown[:, 4:, :4].isnan().all()


def test_views_are_recorded_only_when_asked_for() -> None:
    augmentation = Augmentation(ImageConfig(modality="mri", size=32, channels=1))
    images = torch.rand(3, 1, 32, 32, generator=torch_generator(0))
    assert augmentation.made is None
    expected = augmentation.light(images, torch_generator(1)), augmentation.strong(images, torch_generator(2))
    augmentation.made = []
    views = augmentation.light(images, torch_generator(1)), augmentation.strong(images, torch_generator(2))
    assert all(torch.equal(*pair) for pair in zip(views, expected, strict=True))
    assert [made.kind for made in augmentation.made] == ["light", "strong"]
    assert all(torch.equal(made.views, view) for made, view in zip(augmentation.made, views, strict=True))


def test_trained_weights_restore_otherwise_and_others_are_refused(
    sheets: list[list[Block]], finished: Any, study_file: Path, tmp_path: Path
) -> None:
    for weights in (None, finished.folder):
        preview(finished.study, out=tmp_path / "s.png", images=1, weights=weights)
    untrained, trained = (panels(sheet[0])["restored"].pixels for sheet in sheets)
    assert np.abs(untrained - trained).max() > 1e-3
    stranger = tmp_path / "other.safetensors"
    save_tensors(stranger, {"encoder.weight": torch.zeros(2)})
    with pytest.raises(StudyError, match="holds other tensors"):
        preview(study_file, weights=stranger)
    with pytest.raises(RunError, match="missing"):
        preview(study_file, weights=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "--images 0: give 1 to 32"),
        ({"channel": 2}, "--channel 2: the study's images have 1"),
        ({"out": Path("sheet.jpg")}, "ends in .png"),
    ],
)
def test_bad_options_are_one_line(study_file: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FedpretextError, match=message) as error:
        preview(study_file, **options)
    assert "\n" not in str(error.value)


def test_findings_lie_where_the_encoder_sees_them(tmp_path: Path) -> None:
    """An image of 40 x 20 (width, height) in a square of 32: 16 rows in the middle."""
    Image.fromarray(np.full((20, 40), 90, dtype=np.uint8)).save(tmp_path / "p.png")
    mask = np.zeros((20, 40), dtype=bool)
    mask[5:15, 10:30] = True
    Image.fromarray(mask).save(tmp_path / "m.png")
    row = pd.Series({"image": "p.png", "mask": "m.png", "boxes": "[[10, 5, 30, 15, 1]]"})
    found = findings_of(row, tmp_path, 32)
    assert found.mask is not None
    rows, columns = np.nonzero(found.mask)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (12, 20, 8, 24)
    assert found.boxes == ((8.0, 12.0, 24.0, 20.0),)
    nothing = findings_of(pd.Series({"image": "p.png"}), tmp_path, 32)
    assert nothing.mask is None and nothing.boxes == ()


def test_marked_images_come_first(sheets: list[list[Block]], tmp_path: Path, raw_study: dict[str, Any]) -> None:
    raw_study["simulation"] = {"dataset": "phantoms", "options": {"images": 16, "size": 32}}
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(raw_study))
    preview(study, out=tmp_path / "s.png", images=2)
    assert all(panels(block)["original"].findings.mask is not None for block in sheets[0])
