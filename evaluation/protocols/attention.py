"""Gated attention over a patient's images (multiple-instance learning; Ilse et al. 2018, eq. 8 and 9).

A patient is a bag of frozen, standardised features h: weights a = softmax of w^T (tanh(V h) x sigmoid(U h)) over the
patient's images, logits linear in their weighted mean. Trained on the patients' labels with AdamW and a cosine with
warm-up for a fixed number of passes: neither validation nor test patients are read. Unlike the paper's, the features
are not trained, and a step takes several bags, padded to the largest.
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from evaluation.protocols.logistic import Standard
from evaluation.protocols.trial import Trial
from evaluation.statistics.intervals import FloatArray, IntArray
from foundation.errors import DataError
from foundation.randomness import numpy_generator, seeded_torch, stream_seed
from foundation.schedules import warmup_cosine

BAGS_AT_ONCE = 8
WARMUP = 0.1

Patients = NDArray[np.str_]


class GatedAttention(nn.Module):
    """Pooling of bags by gated attention, and a linear head on the pooled feature that starts at zero."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.content = nn.Linear(features, width)
        self.gate = nn.Linear(features, width)
        self.score = nn.Linear(width, 1, bias=False)  # the softmax would not see a bias
        self.head = nn.Linear(features, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def attention(self, bags: Tensor, there: Tensor) -> Tensor:
        """Weights ``[B, M]``, 1 in all for each bag; bags ``[B, M, D]``, there ``[B, M]`` false at padding."""
        hidden = torch.tanh(self.content(bags)) * torch.sigmoid(self.gate(bags))  # [B, M, width]
        scores = cast(Tensor, self.score(hidden))[:, :, 0].masked_fill(~there, -torch.inf)
        return scores.softmax(dim=1)

    def forward(self, bags: Tensor, there: Tensor) -> Tensor:
        """Logits ``[B, K]``."""
        pooled = (self.attention(bags, there)[:, :, None] * bags).sum(dim=1)  # [B, D]
        return cast(Tensor, self.head(pooled))


def attention_scores(
    train: tuple[FloatArray, IntArray, Patients], test: tuple[FloatArray, Patients], trial: Trial
) -> tuple[FloatArray, Patients]:
    """Probabilities ``[P, K]`` of the test patients, and the patients ``[P]``, in order of first appearance.

    train: features ``[N, D]``, labels ``[N]``, patients ``[N]``; test without labels. DataError where the images of a
    training patient differ in label.
    """
    features, labels, patients = train
    standard, bags = Standard.of(features), _bags(patients)
    answers = torch.from_numpy(np.array([_common(labels[places]) for places in bags], dtype=np.int64))
    seed, settings = stream_seed(trial.seed, "attention"), trial.config.attention
    with seeded_torch(seed, "weights"):
        network = GatedAttention(features.shape[1], settings.width, trial.classes).to(trial.device)
    _train(network, torch.from_numpy(standard(features)).float(), bags, answers, trial, seed)
    asked = _bags(test[1])
    scores = _predict(network, torch.from_numpy(standard(test[0])).float(), asked, trial.device)
    return scores, np.asarray([test[1][places[0]] for places in asked], dtype=np.str_)


def _train(
    network: GatedAttention, features: Tensor, bags: list[IntArray], answers: Tensor, trial: Trial, seed: int
) -> None:
    """In place, on the labels ``[P]`` of the bags."""
    settings, order = trial.config.attention, numpy_generator(seed, "order")
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    a_pass = -(-len(bags) // BAGS_AT_ONCE)
    total, step = settings.epochs * a_pass, 0
    for _ in range(settings.epochs):
        for chosen in np.array_split(order.permutation(len(bags)), a_pass):
            for group in optimiser.param_groups:
                group["lr"] = warmup_cosine((step + 0.5) / total, settings.learning_rate, warmup=WARMUP)
            shown, there = _padded(features, [bags[place] for place in chosen], trial.device)
            loss = functional.cross_entropy(network(shown, there), answers[chosen].to(trial.device))
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            step += 1


@torch.no_grad()
def _predict(network: GatedAttention, features: Tensor, bags: list[IntArray], device: torch.device) -> FloatArray:
    """Probabilities ``[P, K]``."""
    logits = [
        network(*_padded(features, bags[i : i + BAGS_AT_ONCE], device)) for i in range(0, len(bags), BAGS_AT_ONCE)
    ]
    return np.asarray(torch.cat(logits).cpu().double().softmax(dim=1).numpy())


def _bags(patients: Patients) -> list[IntArray]:
    """Places of each patient's images, patients in order of first appearance."""
    _, first, code = np.unique(patients, return_index=True, return_inverse=True)
    return [np.flatnonzero(code == k) for k in np.argsort(first)]


def _common(labels: IntArray) -> int:
    """The one label of a patient's images."""
    found = np.unique(labels)
    if len(found) > 1:
        raise DataError(
            f"a training patient has images of {len(found)} classes, but the protocol attention needs one label a "
            "patient; give every image its patient's label, or leave the protocol out"
        )
    return int(found[0])


def _padded(features: Tensor, bags: list[IntArray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Bags ``[B, M, D]`` of the largest one's size, zeros after the smaller ones, and where images are ``[B, M]``."""
    sizes = torch.tensor([len(places) for places in bags])
    shown = nn.utils.rnn.pad_sequence([features[places] for places in bags], batch_first=True)
    there = torch.arange(shown.shape[1]) < sizes[:, None]
    return shown.to(device), there.to(device)
