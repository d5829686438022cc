"""AdamW as every site uses it: groups by part, rates by study progress, moments by parameter name."""

import torch
from torch import Tensor, nn

from federation.training_config import TrainingConfig
from foundation.schedules import cosine, warmup_cosine
from ssl_methods.method import Method

_MOMENTS: tuple[str, ...] = ("step", "exp_avg", "exp_avg_sq")


def build_optimiser(method: Method, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, a group for each part of the method; no decay of vectors (biases, norms) and embeddings (mask tokens).

    These two are left out in MAE and DINO too.
    """
    embeddings = {id(m.weight) for m in method.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in embeddings
            groups.setdefault((method.part_of(name), decays), []).append(parameter)
    param_groups = [{"params": members, "part": part, "decays": decays} for (part, decays), members in groups.items()]
    # The fused step is one pass over memory on CPU and CUDA alike.
    fused = next(method.encoder.parameters()).device.type != "mps"
    assert training.betas is not None  # a study's never are
    return torch.optim.AdamW(param_groups, lr=0.0, betas=training.betas, fused=fused)


def set_rates(
    optimiser: torch.optim.Optimizer, training: TrainingConfig, method: Method, progress: float, images: int
) -> float:
    """Set the learning rate and weight decay of every part for steps of ``images`` images; the encoder's rate."""
    assert training.learning_rate is not None  # a study's never is
    peak = training.learning_rate * images / 256
    scheduled = warmup_cosine(progress, peak, warmup=training.warmup)
    end = training.weight_decay if training.final_weight_decay is None else training.final_weight_decay
    decay = cosine(progress, training.weight_decay, end)
    for group in optimiser.param_groups:
        group["lr"] = method.rate(group["part"], progress, scheduled, peak)
        group["weight_decay"] = decay if group["decays"] else 0.0
    return method.rate("encoder", progress, scheduled, peak)


def state_of(optimiser: torch.optim.AdamW, method: Method) -> dict[str, Tensor]:
    """AdamW's moments by parameter name: ``<parameter>/<moment>``."""
    return {
        f"{name}/{moment}": optimiser.state[parameter][moment]
        for name, parameter in method.named_parameters()
        if parameter in optimiser.state
        for moment in _MOMENTS
    }


def restore(optimiser: torch.optim.AdamW, method: Method, state: dict[str, Tensor], device: torch.device) -> None:
    """Put the moments of ``state_of`` back, each laid out as its weight is, which the fused step relies on."""
    for name, parameter in method.named_parameters():
        if f"{name}/step" in state:
            moments = {moment: state[f"{name}/{moment}"].to(device).clone() for moment in _MOMENTS}
            optimiser.state[parameter] = {
                moment: laid_out_like(parameter, value) if value.shape == parameter.shape else value
                for moment, value in moments.items()
            }


def laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of ``value``, of the same shape as ``parameter``, with its strides."""
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
