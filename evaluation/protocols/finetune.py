"""Fine-tuning: the encoder, or its last layers, and a linear head trained on the labels.

AdamW, cosine with warm-up, layer-wise decay of the rate and stochastic depth as in MAE's fine-tuning (He et al.
2022, table 9; only the last layers: their sec. 4.3; layer decay: Clark et al. 2020), without mixup. The number of
epochs is fixed: no image outside the training patients is read, so neither test nor validation can steer it. From
random weights, or from the starting weights where a study has any, it is the supervised reference.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from evaluation.protocols.steps import set_rate, take_step
from evaluation.protocols.trial import Trial
from evaluation.statistics.intervals import FloatArray
from foundation.randomness import numpy_generator, seeded_torch, stream_seed, torch_generator
from foundation.schedules import warmup_cosine
from imaging.views.augment import Augmentation
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.encoders.statistics import estimate_statistics, plain_batches
from ssl_methods.encoders.timm_encoders import layer_depths

SCORED_AT_ONCE = 256

Outcome = Literal["class", "findings", "value"]
"""What is asked: one class of K (labels ``[N]``), each of L findings (0 or 1, ``[N, L]``), or a number (``[N]``)."""

_LOSS: dict[Outcome, Callable[[Tensor, Tensor], Tensor]] = {
    "class": functional.cross_entropy,
    "findings": functional.binary_cross_entropy_with_logits,
    "value": functional.smooth_l1_loss,
}
_ANSWER: dict[Outcome, Callable[[Tensor], Tensor]] = {
    "class": lambda outputs: functional.softmax(outputs, dim=1),
    "findings": torch.sigmoid,
    "value": lambda outputs: outputs,
}


class Classifier(nn.Module):
    """An encoder and a linear head that starts at zero."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(feature_dim(encoder), classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, K]`` of standardised images ``[B, *image.shape]``."""
        return cast(Tensor, self.head(features(self.encoder, images)))


def layer_ranks(encoder: nn.Module) -> dict[str, int]:
    """For every weight of the encoder the number of layers above its own: 0 in the last block, most in the stem.

    Layers are stem, block 1, ...; the final norm goes with the last block.
    """
    depth = layer_depths(encoder)
    matrices = {depth[name] for name, weight in encoder.named_parameters() if weight.ndim > 1}
    layers = sorted({min(layer, max(matrices)) for layer in depth.values()}, reverse=True)
    return {name: layers.index(min(layer, max(matrices))) for name, layer in depth.items()}


def layer_rates(network: nn.Module, decay: float) -> dict[str, float]:
    """For every trained weight its multiple of the rate: ``decay`` less for each layer of ``network.encoder``.

    What is not in the encoder, the head, has 1; the encoder's last layer has ``decay``.
    """
    ranks = layer_ranks(cast(nn.Module, network.encoder))
    rates = {f"encoder.{name}": decay ** (1 + rank) for name, rank in ranks.items()}
    return {name: rates.get(name, 1.0) for name, weight in network.named_parameters() if weight.requires_grad}


def optimiser_for(
    network: nn.Module, learning_rate: float, layer_decay: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW for a network with an ``encoder``: a group per (layer, decayed or not).

    ``scale`` of a group is its multiple of the rate, which a schedule has to keep; vectors have no weight decay.
    """
    rates = layer_rates(network, layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        if name in rates:
            decay = weight_decay if weight.ndim > 1 else 0.0
            groups.setdefault((rates[name], decay), []).append(weight)
    return torch.optim.AdamW(
        [{"params": weights, "scale": rate, "weight_decay": decay} for (rate, decay), weights in groups.items()],
        lr=learning_rate,
    )


def freeze_below(encoder: nn.Module, last: int) -> None:
    """Only the last ``last`` layers are trained further."""
    ranks = layer_ranks(encoder)
    for name, weight in encoder.named_parameters():
        if ranks[name] >= last:
            weight.requires_grad_(False)


def train_mode(network: nn.Module) -> None:
    """Training mode, but not for what is frozen: there norm statistics stay and no path is dropped."""
    network.train()
    for module in network.modules():
        weights = list(module.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            module.eval()


def train(
    classifier: Classifier, images: Tensor, labels: Tensor, trial: Trial, seed: int, outcome: Outcome = "class"
) -> None:
    """Fine-tune in place on ``images [N, *image.shape]`` in [0, 1]; labels: codes ``[N]``, or float32 ``[N, K]``."""
    config, augmentation = trial.config.finetune, Augmentation(trial.image)
    optimiser = optimiser_for(classifier, config.learning_rate, config.layer_decay, config.weight_decay)
    order, views = numpy_generator(seed, "order"), torch_generator(seed, "views")
    a_pass = -(-len(labels) // config.batch)
    total, step = config.epochs * a_pass, 0
    train_mode(classifier)
    for _ in range(config.epochs):
        for chosen in np.array_split(order.permutation(len(labels)), a_pass):
            set_rate(optimiser, warmup_cosine((step + 0.5) / total, config.learning_rate, warmup=config.warmup))
            view = augmentation.light(images[chosen].to(trial.device), views)
            loss = _LOSS[outcome](classifier(view), labels[chosen].to(trial.device))
            take_step(classifier, optimiser, loss)
            step += 1
    settle(classifier.encoder, images, trial)


def settle(encoder: nn.Module, images: Tensor, trial: Trial) -> None:
    """Give trained BatchNorm layers the statistics of the training images at the final weights, in place.

    The running ones are, after few steps, mostly those of other weights: of the start, or of another training.
    """
    batches = plain_batches(len(images), lambda chosen: images[chosen], trial.image, trial.device)
    estimate_statistics(encoder, batches, trained_only=True)


@torch.no_grad()
def predict(classifier: Classifier, images: Tensor, trial: Trial, outcome: Outcome = "class") -> FloatArray:
    """Probabilities, or the head's value, ``[N, K]``; images unaltered but standardised."""
    augmentation = Augmentation(trial.image)
    classifier.eval()
    parts = [
        _ANSWER[outcome](classifier(augmentation.plain(part.to(trial.device))).cpu().double()).numpy()
        for part in torch.split(images, trial.image.at_once(SCORED_AT_ONCE))
    ]
    return np.concatenate(parts)


def finetune_scores(
    images: NDArray[Any],
    labels: NDArray[Any],
    test: NDArray[Any],
    trial: Trial,
    outcome: Outcome = "class",
    last: int | None = None,
) -> FloatArray:
    """``[N, K]`` for the test images, the mean over ``finetune.seeds`` runs.

    Probabilities of ``trial.classes`` classes (cross-entropy) or findings (binary cross-entropy of each), or with K = 1
    the value in its own unit (smooth L1 of the standardised value; Girshick 2015, eq. 3). last: train so many of the
    encoder's last layers and keep those below as they are; None: train all.
    """
    shown, unseen = torch.from_numpy(images).float(), torch.from_numpy(test).float()
    centre, spread = _unit(labels) if outcome == "value" else (0.0, 1.0)
    answers = []
    for repeat in range(trial.config.finetune.seeds):
        seed = stream_seed(trial.seed, "finetune", repeat)
        with seeded_torch(seed, "stochastic depth"):
            classifier = Classifier(trial.encoder(trial.config.finetune.drop_path), trial.classes).to(trial.device)
            if last is not None:
                freeze_below(classifier.encoder, last)
            train(classifier, shown, _target(labels, outcome, centre, spread), trial, seed, outcome)
        answers.append(predict(classifier, unseen, trial, outcome))
    mean = np.asarray(np.mean(answers, axis=0))
    return centre + spread * mean if outcome == "value" else mean


def _unit(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and deviation of the training values; equal ones have deviation 1."""
    return float(values.mean()), float(values.std()) or 1.0


def _target(labels: NDArray[Any], outcome: Outcome, centre: float, spread: float) -> Tensor:
    """Labels as the loss takes them: codes, or float32 of the head's shape."""
    if outcome == "class":
        return torch.from_numpy(labels)
    return torch.from_numpy((labels.reshape(len(labels), -1) - centre) / spread).float()
