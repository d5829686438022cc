"""Networks that follow: their weights, and what their BatchNorm normalises by."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ssl_methods.components.momentum import ema_update, follow_statistics, follower
from ssl_methods.encoders.statistics import batch_norms, follow_batches
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method

RESNET = EncoderConfig(name="resnet10t")
TEACHERS = {
    "byol": ("target_encoder", "target_projector"),
    "moco_v3": ("key_encoder", "key_projector"),
    "dino": ("teacher",),
    "combine": ("members.byol.target_encoder", "members.dino.teacher"),
}
"""Methods whose teacher normalises by the batch as their papers' do, and where its BatchNorms are."""


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_normalises_by_the_batch_after_a_rounds_restart_too(
    name: str, build: Callable[..., Method], blobs: Callable[..., Batch]
) -> None:
    options = {"methods": [{"method": {"name": "byol"}}, {"method": {"name": "dino"}}]} if name == "combine" else {}
    method = build(name, encoder=RESNET, **options).train()
    views = method.make_views(blobs(4), torch.Generator().manual_seed(0))
    follow_batches(method, anew=True)
    before, _ = method.loss(views)
    layers = [layer for part in TEACHERS[name] for layer in batch_norms(method.get_submodule(part))]
    assert layers
    for layer in layers:
        assert layer.running_mean is not None
        layer.running_mean.fill_(9.0)
    after, _ = method.loss(views)
    assert torch.equal(before, after)


def test_statistics_that_follow_forget_their_start_and_then_move_as_the_weights_by_hand() -> None:
    online = nn.Sequential(nn.BatchNorm2d(1))
    target = follower(online).eval()
    means, found = (8.0, 4.0, 3.0, 9.0), []
    for mean in means:
        online[0].running_mean.fill_(mean)
        follow_statistics(target, online, 0.6)
        found.append(target[0].running_mean.item())
    # Whole, half, then more than a third: from here on .4.
    expected = [8.0, 6.0, 0.6 * 6.0 + 0.4 * 3.0]
    assert found == pytest.approx([*expected, 0.6 * expected[-1] + 0.4 * 9.0])
    ema_update(target, online, 0.5)
    assert target[0].running_mean.item() == pytest.approx(found[-1])
    ema_update(target, online, 0.0)
    assert target[0].running_mean.item() == 9.0
