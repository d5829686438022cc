"""Fine-tuning: every weight of the encoder and a linear head trained on the labels.

AdamW, cosine with warm-up, layer-wise decay of the rate and stochastic depth as in MAE's fine-tuning (He et al.
2022, table 9; layer decay: Clark et al. 2020), without mixup. The number of epochs is fixed: no picture outside the
training patients is read, so neither test nor validation can steer it. From random weights, or from
the starting weights where a study has any, it is the supervised reference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from evaluation.config import FinetuneConfig
from evaluation.intervals import FloatArray, IntArray
from foundation.randomness import numpy_generator, seeded_torch, stream_seed, torch_generator
from foundation.schedules import warmup_cosine
from imaging.augment import Augmentation
from imaging.config import ImageConfig
from ssl_methods.encoder_outputs import feature_dim, features
from ssl_methods.encoders import layer_depths

SCORED_AT_ONCE = 256


@dataclass(frozen=True)
class Trial:
    """What a protocol knows beside labelled pictures.

    encoder: makes a fresh copy of the encoder under study, with the given stochastic depth; seed: of this label draw.
    """

    classes: int
    image: ImageConfig
    finetune: FinetuneConfig
    encoder: Callable[[float], nn.Module]
    seed: int
    device: torch.device


class Classifier(nn.Module):
    """An encoder and a linear head that starts at zero."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(feature_dim(encoder), classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits ``[B, K]`` of standardised pictures ``[B, *image.shape]``."""
        return cast(Tensor, self.head(features(self.encoder, pictures)))


def layer_rates(classifier: Classifier, decay: float) -> dict[str, float]:
    """For every trained weight its multiple of the rate: 1 for the head, ``decay`` less for each layer below it.

    Layers are stem, block 1, ...; the final norm goes with the last block.
    """
    depth = layer_depths(classifier.encoder)
    ranks = {layer: rank for rank, layer in enumerate(sorted(set(depth.values())))}
    rates = {f"encoder.{name}": decay ** (len(ranks) - ranks[layer]) for name, layer in depth.items()}
    return {name: rates.get(name, 1.0) for name, weight in classifier.named_parameters() if weight.requires_grad}


def optimiser_for(classifier: Classifier, config: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW with a group per (layer, decayed or not); ``scale`` of a group is its multiple of the rate."""
    rates = layer_rates(classifier, config.layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in classifier.named_parameters():
        if name in rates:
            decay = config.weight_decay if weight.ndim > 1 else 0.0
            groups.setdefault((rates[name], decay), []).append(weight)
    return torch.optim.AdamW(
        [{"params": weights, "scale": rate, "weight_decay": decay} for (rate, decay), weights in groups.items()],
        lr=config.learning_rate,
    )


def train(classifier: Classifier, pictures: Tensor, labels: Tensor, trial: Trial, seed: int) -> None:
    """Fine-tune in place on ``pictures [N, *image.shape]`` in [0, 1] and ``labels [N]``."""
    config, augmentation = trial.finetune, Augmentation(trial.image)
    optimiser = optimiser_for(classifier, config)
    order, views = numpy_generator(seed, "order"), torch_generator(seed, "views", device=trial.device)
    a_pass = -(-len(labels) // config.batch)
    total, step = config.epochs * a_pass, 0
    classifier.train()
    for _ in range(config.epochs):
        for chosen in np.array_split(order.permutation(len(labels)), a_pass):
            rate = warmup_cosine((step + 0.5) / total, config.learning_rate, warmup=config.warmup)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["scale"]
            view = augmentation.light(pictures[chosen].to(trial.device), views)
            loss = functional.cross_entropy(classifier(view), labels[chosen].to(trial.device))
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
            optimiser.step()
            step += 1


@torch.no_grad()
def predict(classifier: Classifier, pictures: Tensor, trial: Trial) -> FloatArray:
    """Probabilities ``[N, K]``, pictures unaltered but standardised."""
    augmentation = Augmentation(trial.image)
    classifier.eval()
    parts = [
        functional.softmax(classifier(augmentation.plain(part.to(trial.device))).double(), dim=1).cpu().numpy()
        for part in torch.split(pictures, trial.image.at_once(SCORED_AT_ONCE))
    ]
    return np.concatenate(parts)


def finetune_scores(pictures: NDArray[Any], labels: IntArray, test: NDArray[Any], trial: Trial) -> FloatArray:
    """``[N, K]`` probabilities of the test pictures, the mean over ``finetune.seeds`` runs."""
    shown, unseen = torch.from_numpy(pictures).float(), torch.from_numpy(test).float()
    target = torch.from_numpy(labels)
    scores = []
    for repeat in range(trial.finetune.seeds):
        seed = stream_seed(trial.seed, "finetune", repeat)
        with seeded_torch(seed, "stochastic depth"):
            classifier = Classifier(trial.encoder(trial.finetune.drop_path), trial.classes).to(trial.device)
            train(classifier, shown, target, trial, seed)
        scores.append(predict(classifier, unseen, trial))
    return np.asarray(np.mean(scores, axis=0))
