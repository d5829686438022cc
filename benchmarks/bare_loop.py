"""What a person would write for one experiment: the same training and averaging in one loop in memory, nothing else.

No Flower, no message, no reply store, no checkpoint, no file. Written from the formulas, not from
client/training/round.py: that both end in the same bits is what ``benchmarks.simulation`` asserts.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from foundation.randomness import torch_generator
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore
from ssl_methods import build_method
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method
from ssl_methods.reconstruction.mae import MAEConfig

SEED, ROUNDS, BATCH, RATE, WARMUP, DECAY, BETAS = 0, 3, 32, 1e-3, 0.1, 0.05, (0.9, 0.95)
IMAGE = {"modality": "mri", "size": 64, "channels": 1}
ENCODER = {"name": "vit_tiny_patch16_224", "patch_size": 8}


def run_bare(data: dict[str, Path], cache: Path, depth: int, lap: Callable[[], None]) -> dict[str, Tensor]:
    """Train and average ``ROUNDS`` rounds of MAE over the sites' manifests; calls ``lap`` after each round."""
    image = ImageConfig.model_validate(IMAGE)
    stores = {site: TensorStore.build(Manifest.open(path), image, cache) for site, path in sorted(data.items())}
    method = build_method(MAEConfig(), EncoderConfig.model_validate(ENCODER | {"depth": depth}), image, SEED)
    optimisers = {site: _optimiser(method) for site in stores}
    weights = {name: value.clone() for name, value in method.state_dict().items()}
    everywhere = float(sum(len(store) for store in stores.values()))
    method.train()
    for round_ in range(1, ROUNDS + 1):
        mean = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in weights.items()}
        for site, store in stores.items():
            method.load_state_dict(weights)
            _train(method, optimisers[site], store, site, round_)
            for name, value in method.state_dict().items():
                mean[name].add_(value, alpha=len(store) / everywhere)
        weights = {name: value.to(weights[name].dtype) for name, value in mean.items()}
        lap()
    return weights


def _optimiser(method: Method) -> torch.optim.AdamW:
    """AdamW without decay on vectors and the mask token."""
    tokens = {id(module.weight) for module in method.modules() if isinstance(module, torch.nn.Embedding)}
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for parameter in method.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1 and id(parameter) not in tokens].append(parameter)
    split = [{"params": members, "weight_decay": DECAY * decays} for decays, members in groups.items()]
    return torch.optim.AdamW(split, betas=BETAS, fused=True)


def _train(method: Method, optimiser: torch.optim.AdamW, store: TensorStore, site: str, round_: int) -> float:
    reading, views = (torch_generator(SEED, purpose, site, round_) for purpose in ("reading", "views"))
    patients, series = torch.from_numpy(store.patients), torch.from_numpy(store.series)
    order, steps, losses = torch.randperm(len(store), generator=reading), len(store) // BATCH, 0.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = _rate((round_ - 1 + (step + 0.5) / steps) / ROUNDS)
        chosen = order[step * BATCH : (step + 1) * BATCH]
        batch = Batch(store.batch(chosen.numpy()), patients[chosen], series[chosen], series[chosen])
        loss, _ = method.loss(method.make_views(batch, views))
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses += float(loss)
    return losses / steps


def _rate(progress: float) -> float:
    """Linear warm-up, then a half cosine to zero, over the whole study; ``RATE`` is for 256 images a step."""
    peak = RATE * BATCH / 256
    if progress < WARMUP:
        return peak * progress / WARMUP
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))
