"""Values and gradients recorded from another implementation (shared/oracles), at the tolerances given there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_methods.diagnostics import alignment, rankme
from ssl_methods.ijepa import follow, ijepa_loss
from ssl_methods.mae import mae_loss, patchify, random_masks, unpatchify
from ssl_methods.simclr import nt_xent

VALUE = {"rtol": 1e-5, "atol": 1e-6}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def oracle(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "oracles" / "oracle.npz") as archive:
        return {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files}


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
    keep, masked = random_masks(2, 16, 0.75, torch.Generator().manual_seed(0))
    assert keep.shape[1] == oracle["mae_mask_r0.75/idx_keep"].shape[1] - 1
    assert masked.shape == oracle["mae_mask_r0.75/idx_mask"].shape


def test_mae_loss_on_normalised_pixels(oracle: dict[str, Tensor]) -> None:
    prediction = leaf(oracle, "mae_loss_normpix/pred")
    masked = oracle["mae_loss_normpix/idx_mask"] - 1  # there: places behind a class token
    loss = mae_loss(prediction, oracle["mae_loss_normpix/images"], masked, 8, norm_pixels=True)
    loss.backward()
    torch.testing.assert_close(loss, oracle["mae_loss_normpix/expected"], **VALUE)
    torch.testing.assert_close(prediction.grad, oracle["mae_loss_normpix/grad_pred"], **GRADIENT)


def test_ijepa_loss(oracle: dict[str, Tensor]) -> None:
    prediction = leaf(oracle, "ijepa_smoothl1/pred")
    loss = ijepa_loss(prediction, oracle["ijepa_smoothl1/target_raw"])
    loss.backward()
    torch.testing.assert_close(loss, oracle["ijepa_smoothl1/expected"], **VALUE)
    torch.testing.assert_close(prediction.grad, oracle["ijepa_smoothl1/grad_pred"], **GRADIENT)


def test_momentum_step(oracle: dict[str, Tensor]) -> None:
    target, online = torch.nn.Linear(16, 4, bias=False), torch.nn.Linear(16, 4, bias=False)
    with torch.no_grad():
        target.weight.copy_(oracle["ema_step/teacher"])
        online.weight.copy_(oracle["ema_step/student"])
    follow(target, online, 0.99)
    torch.testing.assert_close(target.weight.detach(), oracle["ema_step/expected"], **VALUE)


def test_diagnostics(oracle: dict[str, Tensor]) -> None:
    assert rankme(oracle["rankme/Z"]) == pytest.approx(float(oracle["rankme/expected"]), rel=1e-5)
    measured = alignment(oracle["alignment_a2/u"], oracle["alignment_a2/v"])
    assert measured == pytest.approx(float(oracle["alignment_a2/expected"]), rel=1e-5)
