"""Attention finds the one image of a patient that tells, repeats itself, and reads nothing but labels of patients."""

import numpy as np
import pytest
import torch

from evaluation.config import AttentionConfig, EvaluationConfig
from evaluation.protocols.attention import GatedAttention, attention_scores
from evaluation.protocols.logistic import logistic_scores
from evaluation.protocols.trial import Trial
from evaluation.tasks.metrics import auroc
from foundation.errors import DataError
from foundation.randomness import numpy_generator, seeded_torch
from imaging.config import ImageConfig

Bags = tuple[np.ndarray, np.ndarray, np.ndarray]


def trial(seed: int = 3, classes: int = 2, **settings: float) -> Trial:
    config = EvaluationConfig(
        attention=AttentionConfig.model_validate({"width": 16, "learning_rate": 0.01, "epochs": 25, **settings})
    )
    image = ImageConfig(modality="mri", size=16, channels=1)
    return Trial(classes, image, config, lambda drop_path: torch.nn.Identity(), seed, torch.device("cpu"))


def bags(count: int, seed: int, width: int = 8) -> Bags:
    """Patients of 6 to 14 images, mixed; of each one image tells the class, and is marked by feature 0.

    In the other images the feature that tells has the other sign as often, larger, so that their mean tells little.
    """
    draw = numpy_generator(seed, "bags")
    sizes = draw.integers(6, 15, count)
    patients = np.repeat([f"p{number}" for number in range(count)], sizes)
    labels = np.repeat(draw.integers(0, 2, count), sizes)
    features = draw.standard_normal((len(patients), width))
    features[:, 1] *= 2
    telling = np.cumsum(sizes) - 1
    features[telling, 0] += 6
    features[telling, 1] = 2.0 * labels[telling] - 1
    order = draw.permutation(len(patients))
    return features[order], labels[order].astype(np.int64), patients[order]


def first_appearance(patients: np.ndarray) -> list[str]:
    return list(dict.fromkeys(patients.tolist()))


def patient_truth(labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    return np.array([labels[patients == name][0] for name in first_appearance(patients)])


def means(features: np.ndarray, patients: np.ndarray) -> np.ndarray:
    return np.stack([features[patients == name].mean(0) for name in first_appearance(patients)])


def test_finds_the_telling_image_where_the_mean_does_not() -> None:
    features, labels, patients = bags(150, 1)
    shown, truth, asked = bags(80, 2)
    scores, names = attention_scores((features, labels, patients), (shown, asked), trial())
    assert names.tolist() == first_appearance(asked)
    np.testing.assert_allclose(scores.sum(1), 1.0)
    expected = patient_truth(truth, asked)
    assert auroc(expected, scores) > 0.95
    known = (means(features, patients), patient_truth(labels, patients))
    pooled = logistic_scores(known, known, means(shown, asked), 2)
    assert auroc(expected, pooled) < 0.8


def test_weights_are_equation_9_and_ignore_padding() -> None:
    with seeded_torch(0, "attention"):
        network = GatedAttention(3, 5, 2)
    bag = torch.from_numpy(numpy_generator(0, "bag").standard_normal((4, 3))).float()
    scores = [network.score.weight[0] @ (torch.tanh(network.content(h)) * torch.sigmoid(network.gate(h))) for h in bag]
    weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
    padded = torch.cat([bag, 100 * torch.ones(2, 3)])[None]
    there = torch.tensor([[True] * 4 + [False] * 2])
    torch.testing.assert_close(network.attention(padded, there), torch.cat([weights, torch.zeros(2)])[None])
    torch.nn.init.normal_(network.head.weight)
    torch.testing.assert_close(network(padded, there), network.head(weights @ bag)[None])


def test_repeats_itself_and_leaves_the_generators_alone() -> None:
    features, labels, patients = bags(20, 1)
    shown, _, asked = bags(9, 2)
    state = torch.random.get_rng_state()
    first = attention_scores((features, labels, patients), (shown, asked), trial(epochs=3))[0]
    np.testing.assert_array_equal(
        attention_scores((features, labels, patients), (shown, asked), trial(epochs=3))[0], first
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    for other in (trial(seed=4, epochs=3), trial(epochs=4), trial(epochs=3, width=8), trial(epochs=3, weight_decay=1)):
        assert (attention_scores((features, labels, patients), (shown, asked), other)[0] != first).any()


def test_a_test_patient_is_scored_alone() -> None:
    """The scores of a patient depend on no other test patient, beyond float32's last digits."""
    features, labels, patients = bags(20, 1)
    shown, _, asked = bags(12, 2)
    known = (features, labels, patients)
    whole, names = attention_scores(known, (shown, asked), trial(epochs=3))
    own = asked == names[4]
    alone, name = attention_scores(known, (shown[own], asked[own]), trial(epochs=3))
    assert name.tolist() == [names[4]]
    np.testing.assert_allclose(alone[0], whole[4], rtol=1e-5)


def test_a_patient_of_two_classes_is_refused_in_one_line() -> None:
    features, labels, patients = bags(5, 1)
    labels[np.flatnonzero(patients == patients[0])[0]] ^= 1
    with pytest.raises(DataError, match="2 classes, but the protocol attention needs one label a patient") as caught:
        attention_scores((features, labels, patients), (features, patients), trial())
    assert "\n" not in str(caught.value)
    assert patients[0] not in str(caught.value)
