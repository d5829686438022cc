"""Fine-tuning learns, is repeatable, and slows the lower layers."""

import numpy as np
import pytest
import torch

from evaluation.config import EvaluationConfig, FinetuneConfig
from evaluation.protocols.finetune import (
    Classifier,
    finetune_scores,
    freeze_below,
    layer_rates,
    optimiser_for,
    train,
    train_mode,
)
from evaluation.protocols.trial import Trial
from evaluation.tasks.metrics import auroc
from foundation.randomness import numpy_generator, seeded_torch
from imaging.config import ImageConfig
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

IMAGE = ImageConfig(modality="mri", size=16, channels=1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=3, width=32, heads=2)
RESNET = EncoderConfig(name="resnet10t")


def trial(config: EncoderConfig, classes: int = 2, **settings: float) -> Trial:
    def encoder(drop_path: float) -> torch.nn.Module:
        with seeded_torch(1, "encoder"):
            return build_encoder(config.model_copy(update={"drop_path": drop_path}), IMAGE)

    tuned = FinetuneConfig.model_validate({"epochs": 12, "learning_rate": 3e-3, "batch": 16, **settings})
    return Trial(classes, IMAGE, EvaluationConfig(finetune=tuned), encoder, 7, torch.device("cpu"))


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stripes along or across."""
    rng = numpy_generator(seed, "stripes")
    labels = rng.integers(0, 2, count)
    wave = np.sin(np.arange(16) * np.pi / 2 + 0.3)
    shown = np.where(labels[:, None, None] == 1, wave[None, :, None], wave[None, None, :]) * 0.3 + 0.5
    return (shown + rng.normal(0, 0.05, (count, 16, 16))).clip(0, 1)[:, None].astype(np.float32), labels


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_learns_from_random_weights_and_repeats_itself(config: EncoderConfig) -> None:
    x, y = images(33, 1)
    seen, truth = images(40, 2)
    tuned = trial(config, epochs=12 if config is VIT else 4)
    scores = finetune_scores(x, y, seen, tuned)
    assert auroc(truth, scores) > 0.9
    np.testing.assert_allclose(scores.sum(1), 1.0)
    state = torch.random.get_rng_state()
    np.testing.assert_array_equal(finetune_scores(x, y, seen, tuned), scores)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_repeats_are_averaged() -> None:
    x, y = images(20, 1)
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
    for group in optimiser_for(classifier, 1e-3, 0.5, 0.05).param_groups:
        assert (group["weight_decay"] == 0.0) == all(weight.ndim <= 1 for weight in group["params"])


def test_stochastic_depth_reaches_the_encoder() -> None:
    last = trial(VIT).encoder(0.4).blocks[-1]  # type: ignore[union-attr,index]  # timm's modules are untyped
    assert last.drop_path1.drop_prob == pytest.approx(0.4)


def test_the_optimiser_takes_any_network_with_an_encoder() -> None:
    """Two heads have the whole rate; a frozen weight is in no group."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.first, self.second = (
                trial(VIT).encoder(0.0),
                torch.nn.Linear(3, 3),
                torch.nn.Linear(3, 3),
            )

    network = Network()
    freeze_below(network.encoder, 1)
    optimiser = optimiser_for(network, 1e-3, 0.5, 0.1)
    assert sorted({(group["scale"], group["weight_decay"]) for group in optimiser.param_groups}) == [
        (0.5, 0.0), (0.5, 0.1), (1.0, 0.0), (1.0, 0.1),
    ]  # fmt: skip
    grouped = {id(weight) for group in optimiser.param_groups for weight in group["params"]}
    assert grouped == {id(weight) for weight in network.parameters() if weight.requires_grad}


def test_a_final_norm_alone_is_no_layer() -> None:
    """timm's ConvNeXt has its last norm in the head, which its own grouping gives a layer to itself."""
    encoder = trial(EncoderConfig(name="convnext_atto")).encoder(0.0)
    rates = layer_rates(Classifier(encoder, 2), 0.5)
    assert rates["encoder.head.norm.weight"] == rates["encoder.stages.3.blocks.1.mlp.fc1.weight"] == 0.5


@pytest.mark.parametrize(
    ("config", "below", "above"),
    [(VIT, "blocks.1.", ("blocks.2.", "norm.")), (RESNET, "layer3.0.", ("layer4.0.",))],
    ids=["vit", "resnet"],
)
def test_only_the_last_layers_change(config: EncoderConfig, below: str, above: tuple[str, ...]) -> None:
    """All else stays to the bit, norm statistics too; the last layer and the head move."""
    x, y = images(24, 1)
    tuned = trial(config, epochs=2)
    classifier = Classifier(tuned.encoder(0.0), 2)
    freeze_below(classifier.encoder, 1)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    train(classifier, torch.from_numpy(x), torch.from_numpy(y), tuned, 0)
    moved = {name for name, value in classifier.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith(f"encoder.{below}") for name in before)
    assert {name for name in moved if not name.startswith(tuple(f"encoder.{part}" for part in above))} == {
        "head.weight", "head.bias",
    }  # fmt: skip
    trained = {name for name, weight in classifier.named_parameters() if weight.requires_grad}
    assert trained <= moved


def test_frozen_blocks_drop_no_path() -> None:
    encoder = trial(VIT).encoder(0.4)
    freeze_below(encoder, 1)
    train_mode(encoder)
    blocks = encoder.blocks  # type: ignore[union-attr]  # timm's modules are untyped
    assert [block.drop_path1.training for block in blocks] == [False, False, True]  # type: ignore[union-attr]


def test_last_layers_are_counted_from_the_head() -> None:
    """One layer and two differ; as many as there are is full fine-tuning."""
    x, y = images(20, 1)
    tuned = trial(VIT, epochs=1)
    one, two, four, every = (finetune_scores(x, y, x, tuned, last=last) for last in (1, 2, 4, None))
    assert (one != two).any()
    assert (two != four).any()
    np.testing.assert_array_equal(four, every)


def test_findings_are_learnt_side_by_side() -> None:
    """Three findings: the stripes' direction, its opposite, and one that no training image has."""
    x, y = images(40, 1)
    seen, truth = images(40, 2)
    scores = finetune_scores(x, np.stack([y, 1 - y, 0 * y], axis=1), seen, trial(VIT, classes=3), "findings")
    assert auroc(truth, np.stack([1 - scores[:, 0], scores[:, 0]], axis=1)) > 0.9
    assert auroc(1 - truth, np.stack([1 - scores[:, 1], scores[:, 1]], axis=1)) > 0.9
    assert ((scores > 0) & (scores < 1)).all()
    assert scores[:, 2].mean() < 0.4


@pytest.mark.slow
def test_values_are_in_their_own_unit() -> None:
    """Head at zero answers the mean; a change of unit changes the answers alike."""
    x, y = images(40, 1)
    seen, truth = images(40, 2)
    years = 50.0 + 20.0 * y
    tuned = trial(VIT, classes=1)
    found = finetune_scores(x, years, seen, tuned, "value")
    assert found.shape == (40, 1)
    assert np.abs(found[:, 0] - (50.0 + 20.0 * truth)).mean() < 5.0
    months = finetune_scores(x, 12 * years, seen, tuned, "value")
    np.testing.assert_allclose(months, 12 * found, rtol=1e-3)
    still = finetune_scores(x, years, seen, trial(VIT, classes=1, epochs=1, learning_rate=1e-12), "value")
    np.testing.assert_allclose(still, years.mean(), rtol=1e-6)
    np.testing.assert_allclose(finetune_scores(x, 0.1 + 0 * years, seen, tuned, "value"), 0.1, rtol=1e-6)
