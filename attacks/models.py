"""The models that are attacked: the run's own, its start, and one that was overfitted on purpose."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from attacks.scores import coupled
from attacks.settings import AttackSettings
from client.training.batches import BatchReader
from evaluation.kept_method import load_shared
from federation.study import Study
from foundation.errors import RunError
from foundation.progress import bar
from foundation.randomness import seeded_torch, torch_generator
from foundation.schedules import warmup_cosine
from imaging.store import TensorStore
from server.export import GLOBAL_NAME
from simulation.starting import WEIGHTS_NAME, kept_weights
from ssl_methods import build_method
from ssl_methods.encoders.starting_weights import start_from
from ssl_methods.method import Method


def start_of(run: Path, study: Study) -> Method:
    """The study's model before its first round."""
    method = build_method(study.method, study.encoder, study.image, study.seed)
    if (run / WEIGHTS_NAME).exists():
        start_from(method, kept_weights(run), "the run's starting weights")
    method.start_local_parts()
    return method


def released(folder: Path, study: Study) -> Method:
    """The model that an arm's folder holds: all that the sites share; RunError where the arm is not finished."""
    path = folder / GLOBAL_NAME
    if not path.exists():
        raise RunError(f"{path}: is missing, so there is no model to attack; finish the run first (simulate --resume)")
    method = build_method(study.method, study.encoder, study.image, study.seed)
    if not load_shared(method, path):
        raise RunError(f"{path}: holds other tensors than the run's study shares; resume the run to make it again")
    return method


def overfitted(
    method: Method, store: TensorStore, places: Sequence[int], settings: AttackSettings, device: torch.device
) -> Method:
    """``method`` trained in place on few images for many steps, with no defence at all: the positive control."""
    reader, chosen = BatchReader(store, method.config.partner, device), torch.tensor(places)
    method.to(device).train()
    trained = [p for p in method.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    generator = torch_generator(settings.seed, "control")
    steps = settings.coupled_control_steps if coupled(method) else settings.control_steps
    with bar("positive control", steps, "steps") as line, seeded_torch(settings.seed, "control"):
        for number in range(steps):
            progress = (number + 0.5) / steps
            for group in optimiser.param_groups:
                group["lr"] = warmup_cosine(progress, settings.control_rate, warmup=0.1)
            method.before_step(progress)
            views = method.make_views(reader.read(chosen, generator), generator)
            loss, _ = method.loss(views)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(trained, 1.0)  # or a large encoder falls apart at this rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            method.after_step(progress, len(chosen))
            line.advance()
    return method.eval()
