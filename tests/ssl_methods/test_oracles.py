"""Values and gradients recorded from another implementation (shared/oracles), at the tolerances given there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from foundation.schedules import cosine
from ssl_methods.components.momentum import ema_update
from ssl_methods.components.similarity import negative_cosine
from ssl_methods.components.token_masks import random_masks
from ssl_methods.contrastive.moco import moco_loss
from ssl_methods.contrastive.simclr import nt_xent
from ssl_methods.diagnostics import alignment, rankme
from ssl_methods.non_contrastive.byol import byol_loss
from ssl_methods.non_contrastive.dino import dino_loss, moved_centre
from ssl_methods.non_contrastive.lejepa import lejepa_loss
from ssl_methods.non_contrastive.simsiam import simsiam_loss
from ssl_methods.non_contrastive.vicreg import vicreg_loss
from ssl_methods.predictive.ijepa import ijepa_loss
from ssl_methods.reconstruction.mae import mae_loss, patchify, unpatchify

VALUE = {"rtol": 1e-5, "atol": 1e-6}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def oracle(shared: Path) -> dict[str, Tensor]:
    found = {}
    for file in ("oracle.npz", "oracle2.npz"):
        with np.load(shared / "oracles" / file) as archive:
            found |= {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files}
    return found


def leaf(oracle: dict[str, Tensor], name: str) -> Tensor:
    return oracle[name].clone().requires_grad_()


def test_nt_xent(oracle: dict[str, Tensor]) -> None:
    first, second = leaf(oracle, "ntxent_t0.1/z0"), leaf(oracle, "ntxent_t0.1/z1")
    loss, counted = nt_xent(first, second, 0.1)
    loss.backward()
    torch.testing.assert_close(loss, oracle["ntxent_t0.1/expected"], **VALUE)
    torch.testing.assert_close(first.grad, oracle["ntxent_t0.1/grad_z0"], **GRADIENT)
    torch.testing.assert_close(second.grad, oracle["ntxent_t0.1/grad_z1"], **GRADIENT)
    assert counted.all()


def test_nt_xent_under_bfloat16_autocast(oracle: dict[str, Tensor]) -> None:
    first, second = oracle["ntxent_t0.1/z0"], oracle["ntxent_t0.1/z1"]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = nt_xent(first.bfloat16(), second.bfloat16(), 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, oracle["ntxent_t0.1/expected"], rtol=2e-2, atol=0)


def test_patchify_and_back(oracle: dict[str, Tensor]) -> None:
    assert torch.equal(patchify(oracle["patchify_p8/images"], 8), oracle["patchify_p8/expected"])
    assert torch.equal(unpatchify(oracle["unpatchify_p8/patches"], 8), oracle["unpatchify_p8/expected"])


def test_masks_keep_as_many_patches(oracle: dict[str, Tensor]) -> None:
    # The oracle counts a class token at place 0, always kept; ours has none.
    keep, masked = random_masks(torch.rand(2, 16, generator=torch.Generator().manual_seed(0)), 0.75)
    assert keep.shape[1] == oracle["mae_mask_r0.75/idx_keep"].shape[1] - 1
    assert masked.shape == oracle["mae_mask_r0.75/idx_mask"].shape


def test_mae_loss_on_normalised_pixels(oracle: dict[str, Tensor]) -> None:
    prediction = leaf(oracle, "mae_loss_normpix/pred")
    masked = oracle["mae_loss_normpix/idx_mask"] - 1  # there: places behind a class token
    loss = mae_loss(prediction, oracle["mae_loss_normpix/images"], masked, 8, norm_pixels=True).mean()
    loss.backward()
    torch.testing.assert_close(loss, oracle["mae_loss_normpix/expected"], **VALUE)
    torch.testing.assert_close(prediction.grad, oracle["mae_loss_normpix/grad_pred"], **GRADIENT)


def test_ijepa_loss(oracle: dict[str, Tensor]) -> None:
    prediction = leaf(oracle, "ijepa_smoothl1/pred")
    loss = ijepa_loss(prediction, oracle["ijepa_smoothl1/target_raw"]).mean()
    loss.backward()
    torch.testing.assert_close(loss, oracle["ijepa_smoothl1/expected"], **VALUE)
    torch.testing.assert_close(prediction.grad, oracle["ijepa_smoothl1/grad_pred"], **GRADIENT)


def dino_outputs(oracle: dict[str, Tensor], kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    student = torch.stack([oracle[f"dino_2x5/s{view}"] for view in range(5)]).to(kind).requires_grad_()
    teacher = torch.stack([oracle[f"dino_2x5/t{view}"] for view in range(2)]).to(kind)
    return student, teacher, oracle["dino_2x5/center_before"].flatten().to(kind)


def test_dino_loss_and_centre(oracle: dict[str, Tensor]) -> None:
    student, teacher, centre = dino_outputs(oracle, torch.float32)
    loss = dino_loss(student, teacher, centre, 0.1, 0.05)
    loss.backward()
    torch.testing.assert_close(loss, oracle["dino_2x5/expected"], **VALUE)
    for view in range(5):
        torch.testing.assert_close(student.grad[view], oracle[f"dino_2x5/grad_s{view}"], **GRADIENT)
    moved = moved_centre(centre, teacher.mean(dim=(0, 1)), 0.9)
    torch.testing.assert_close(moved, oracle["dino_2x5/center_after"].flatten(), **VALUE)


def test_dino_loss_under_bfloat16_autocast(oracle: dict[str, Tensor]) -> None:
    student, teacher, centre = dino_outputs(oracle, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = dino_loss(student, teacher, centre, 0.1, 0.05)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, oracle["dino_2x5/expected"], rtol=2e-2, atol=0)


def test_momentum_step(oracle: dict[str, Tensor]) -> None:
    target, online = torch.nn.Linear(16, 4, bias=False), torch.nn.Linear(16, 4, bias=False)
    with torch.no_grad():
        target.weight.copy_(oracle["ema_step/teacher"])
        online.weight.copy_(oracle["ema_step/student"])
    ema_update(target, online, 0.99)
    torch.testing.assert_close(target.weight.detach(), oracle["ema_step/expected"], **VALUE)


def test_diagnostics(oracle: dict[str, Tensor]) -> None:
    assert rankme(oracle["rankme/Z"]) == pytest.approx(float(oracle["rankme/expected"]), rel=1e-5)
    measured = alignment(oracle["alignment_a2/u"], oracle["alignment_a2/v"])
    assert measured == pytest.approx(float(oracle["alignment_a2/expected"]), rel=1e-5)


def test_moco_loss_against_a_queue(oracle: dict[str, Tensor]) -> None:
    queries = leaf(oracle, "moco_queue_t0.2/q")
    loss, counted = moco_loss(queries, oracle["moco_queue_t0.2/k"], oracle["moco_queue_t0.2/queue"], 0.2)
    loss.backward()
    torch.testing.assert_close(loss, oracle["moco_queue_t0.2/expected"], **VALUE)
    torch.testing.assert_close(queries.grad, oracle["moco_queue_t0.2/grad_q"], **GRADIENT)
    assert counted.all()


def test_negative_cosine_and_what_byol_and_simsiam_make_of_it(oracle: dict[str, Tensor]) -> None:
    prediction, target = leaf(oracle, "neg_cosine/p"), oracle["neg_cosine/z"]
    expected = oracle["neg_cosine/expected"]
    loss = negative_cosine(prediction, target)
    loss.backward()
    torch.testing.assert_close(loss, expected, **VALUE)
    torch.testing.assert_close(prediction.grad, oracle["neg_cosine/grad_p"], **GRADIENT)
    both = (prediction.detach(), prediction.detach()), (target, target)
    torch.testing.assert_close(byol_loss(*both), 2 * (2 + 2 * expected), **VALUE)
    torch.testing.assert_close(simsiam_loss(*both), expected, **VALUE)


def test_vicreg_loss(oracle: dict[str, Tensor]) -> None:
    first, second = leaf(oracle, "vicreg/za"), leaf(oracle, "vicreg/zb")
    loss, _ = vicreg_loss(first, second, (25.0, 25.0, 1.0))
    loss.backward()
    torch.testing.assert_close(loss, oracle["vicreg/expected"], **VALUE)
    torch.testing.assert_close(first.grad, oracle["vicreg/grad_za"], **GRADIENT)
    torch.testing.assert_close(second.grad, oracle["vicreg/grad_zb"], **GRADIENT)


@pytest.mark.parametrize(
    ("case", "value", "gradient"),
    [("lejepa_2g4l", VALUE, GRADIENT), ("lejepa_2g4l_f64", *[{"rtol": 1e-12, "atol": 1e-15}] * 2)],
)
def test_lejepa_loss(case: str, value: dict[str, float], gradient: dict[str, float], oracle: dict[str, Tensor]) -> None:
    large, small = leaf(oracle, f"{case}/global_proj"), leaf(oracle, f"{case}/local_proj")
    loss, terms = lejepa_loss(torch.cat([large, small]), oracle[f"{case}/directions"].T, 0.05)
    loss.backward()
    torch.testing.assert_close(loss, oracle[f"{case}/expected"], **value)
    for name, term in terms.items():
        torch.testing.assert_close(term, oracle[f"{case}/{name}"], **value)
    torch.testing.assert_close(large.grad, oracle[f"{case}/grad_global"], **gradient)
    torch.testing.assert_close(small.grad, oracle[f"{case}/grad_local"], **gradient)


def test_joint_embedding_losses_under_bfloat16_autocast(oracle: dict[str, Tensor]) -> None:
    halves = {name: value.bfloat16() for name, value in oracle.items() if value.is_floating_point()}
    with torch.autocast("cpu", torch.bfloat16):
        moco, _ = moco_loss(
            halves["moco_queue_t0.2/q"], halves["moco_queue_t0.2/k"], oracle["moco_queue_t0.2/queue"], 0.2
        )
        vicreg, _ = vicreg_loss(halves["vicreg/za"], halves["vicreg/zb"], (25.0, 25.0, 1.0))
        views = torch.cat([halves[f"lejepa_2g4l/{kind}_proj"] for kind in ("global", "local")])
        lejepa, _ = lejepa_loss(views, oracle["lejepa_2g4l/directions"].T, 0.05)
    for name, loss in (("moco_queue_t0.2", moco), ("vicreg", vicreg), ("lejepa_2g4l", lejepa)):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, oracle[f"{name}/expected"], rtol=2e-2, atol=0)


def test_momentum_schedule(oracle: dict[str, Tensor]) -> None:
    steps, expected = oracle["cosine_momentum/step"], oracle["cosine_momentum/expected"]
    ours = torch.tensor([cosine(step / 100, 0.996, 1.0) for step in steps.tolist()], dtype=expected.dtype)
    torch.testing.assert_close(ours, expected, **VALUE)
