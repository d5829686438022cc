"""Fine-tuning learns, is repeatable, and slows the lower layers."""

import numpy as np
import pytest
import torch

from evaluation.config import FinetuneConfig
from evaluation.finetune import Classifier, Trial, finetune_scores, layer_rates, optimiser_for
from evaluation.metrics import auroc
from foundation.randomness import numpy_generator, seeded_torch
from imaging.config import ImageConfig
from ssl_methods.encoders import EncoderConfig, build_encoder

IMAGE = ImageConfig(modality="mri", size=16, channels=1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=3, width=32, heads=2)
RESNET = EncoderConfig(name="resnet10t")


def trial(config: EncoderConfig, **settings: float) -> Trial:
    def encoder(drop_path: float) -> torch.nn.Module:
        with seeded_torch(1, "encoder"):
            return build_encoder(config.model_copy(update={"drop_path": drop_path}), IMAGE)

    tuned = FinetuneConfig.model_validate({"epochs": 12, "learning_rate": 3e-3, "batch": 16, **settings})
    return Trial(2, IMAGE, tuned, encoder, 7, torch.device("cpu"))


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stripes along or across."""
    rng = numpy_generator(seed, "stripes")
    labels = rng.integers(0, 2, count)
    wave = np.sin(np.arange(16) * np.pi / 2 + 0.3)
    shown = np.where(labels[:, None, None] == 1, wave[None, :, None], wave[None, None, :]) * 0.3 + 0.5
    return (shown + rng.normal(0, 0.05, (count, 16, 16))).clip(0, 1)[:, None].astype(np.float32), labels


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_learns_from_random_weights_and_repeats_itself(config: EncoderConfig) -> None:
    x, y = pictures(33, 1)
    seen, truth = pictures(40, 2)
    tuned = trial(config, epochs=12 if config is VIT else 4)
    scores = finetune_scores(x, y, seen, tuned)
    assert auroc(truth, scores) > 0.9
    np.testing.assert_allclose(scores.sum(1), 1.0)
    state = torch.random.get_rng_state()
    np.testing.assert_array_equal(finetune_scores(x, y, seen, tuned), scores)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_repeats_are_averaged() -> None:
    x, y = pictures(20, 1)
    one, two = (finetune_scores(x, y, x, trial(VIT, epochs=1, seeds=count)) for count in (1, 2))
    assert (one != two).any()


def test_rates_fall_by_layer() -> None:
    """Head 1, blocks .75 (the final norm too) .75^2 .75^3, patch embedding .75^4; fixed positions are not trained."""
    classifier = Classifier(trial(VIT).encoder(0.0), 2)
    rates = layer_rates(classifier, 0.75)
    assert rates["head.weight"] == 1.0
    assert rates["encoder.norm.weight"] == pytest.approx(0.75)
    found = [rates[f"encoder.blocks.{i}.mlp.fc1.weight"] for i in (2, 1, 0)]
    assert found == pytest.approx([0.75, 0.75**2, 0.75**3])
    assert rates["encoder.patch_embed.proj.weight"] == pytest.approx(0.75**4)
    assert "encoder.pos_embed" not in rates


def test_a_resnets_stem_is_slowest_and_vectors_do_not_decay() -> None:
    classifier = Classifier(trial(RESNET).encoder(0.0), 2)
    rates = layer_rates(classifier, 0.5)
    assert rates["encoder.conv1.0.weight"] == min(rates.values()) < rates["encoder.layer4.0.conv1.weight"] < 1.0
    for group in optimiser_for(classifier, FinetuneConfig()).param_groups:
        assert (group["weight_decay"] == 0.0) == all(weight.ndim <= 1 for weight in group["params"])


def test_stochastic_depth_reaches_the_encoder() -> None:
    last = trial(VIT).encoder(0.4).blocks[-1]  # type: ignore[union-attr,index]  # timm's modules are untyped
    assert last.drop_path1.drop_prob == pytest.approx(0.4)
