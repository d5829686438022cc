"""Signal and noise of private steps, measured: by patients a site, and what a study learns at a given ratio.

    python -m benchmarks.privacy.signal --root FOLDER

First table: one site of so many patients (chest x-rays, one image each), a quarter of them expected in a step,
epsilon 8 over 200 steps, delta 1e-5. Signal is the length of the sum of clipped gradients, noise the length of what was
added to it, both in clipping bounds and means of ten steps of client/privacy/step.py; the formula for the noise is its
multiplier times the square root of the trained numbers. Agreement is the signal over what it would be if all drawn
patients pulled in one direction; it is measured with random weights, and again after 300 plain steps of 64 images.
The best ratio of the whole study is `signal_to_noise` of federation/privacy/plan.py, of which `validate` warns under 1;
the measured one has the later signal in its place, as if every step pulled the same way.

Second table: the same method trained for 60 private steps of 200 expected patients from the plainly trained weights and
from random ones, with as much noise as brings the best ratio to a given figure. What is learnt is the loss on 500
images of nobody in training, with the same masks every time, against the same before training; and without noise.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from benchmarks.measure import RESULTS, table, write_result
from benchmarks.privacy.audit_game import Images
from client.privacy.step import PrivateStep
from client.training.batches import BatchReader
from client.training.optimiser import build_optimiser, set_rates
from client.training.round import Learner
from federation.algorithms import build_algorithm
from federation.algorithms.fedavg import FedAvgConfig
from federation.privacy import noise
from federation.privacy.accounting import noise_for
from federation.privacy.config import PatientPrivacyConfig
from federation.privacy.plan import LEAST_SIGNAL, signal_to_noise
from federation.training_config import TrainingConfig
from foundation.files import write_json, write_text
from foundation.randomness import torch_generator
from imaging.config import ImageConfig
from ssl_methods import AnyMethodConfig, build_method
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Method

SITES = (12, 36, 100, 300, 1000, 3000)
EPSILON, DELTA, STEPS = 8.0, 1e-5, 200
RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
PEAK, TRAINED_STEPS, PER_STEP, CLIP = 1e-3, 60, 200, 0.1
CPU = torch.device("cpu")
_LITTLE = 1e-6  # noise for "none": it has to be above 0


def build() -> Method:
    """The small encoder with its small decoder, random weights."""
    config = TypeAdapter(AnyMethodConfig).validate_python(
        {"name": "mae", "decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2}
    )
    encoder = EncoderConfig(name="vit_tiny_patch16_224", patch_size=4, depth=4, width=96, heads=3)
    return build_method(config, encoder, ImageConfig(modality="x-ray", size=32, channels=1), 0).train()


def images_of(root: Path) -> tuple[Images, Images]:
    """Training images in an order of chance, and 500 others; 28 pixels in a frame of 32, 0 to 1."""
    with np.load(root / "pneumoniamnist_trimmed" / "pneumoniamnist_trimmed.npz") as arrays:
        both = [torch.from_numpy(arrays[f"{split}_images"]).float()[:, None] / 255 for split in ("train", "test")]
    train, test = (torch.nn.functional.pad(each, (2, 2, 2, 2)) for each in both)
    train = train[torch.randperm(len(train), generator=torch_generator(0, "benchmark", "order"))]
    return Images(train, list(range(len(train)))), Images(test[:500], list(range(500)))


def plainly_trained(store: Images, steps: int = 300) -> dict[str, Tensor]:
    """Weights after plain steps of 64 images."""
    method, generator, reader = build(), torch_generator(0, "benchmark", "plain"), BatchReader(store, None, CPU)
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], PEAK)
    for _ in range(steps):
        chosen = torch.randint(len(store), (64,), generator=generator)
        loss, _ = method.loss(method.make_views(reader.read(chosen, generator), generator))
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return {name: value.clone() for name, value in method.state_dict().items()}


@contextmanager
def measured() -> Iterator[list[tuple[float, float]]]:
    """Squared lengths of the sum and of the noise, for each parameter of each step."""
    found: list[tuple[float, float]] = []
    noised = noise.noised

    def note(total: Tensor, std: float) -> Tensor:
        out = noised(total, std)
        found.append((float(total.double().square().sum()), float((out - total).double().square().sum())))
        return out

    with mock.patch.object(noise, "noised", note):
        yield found


def privacy_of(patients: int, per_step: int) -> PatientPrivacyConfig:
    """Of a site of so many patients."""
    return PatientPrivacyConfig(epsilon=EPSILON, delta=DELTA, patients=patients, patients_per_step=per_step, clip=CLIP)


class Still:
    """In an optimiser's place: the weights stay."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def step(self) -> None:
        """Nothing."""

    def zero_grad(self, set_to_none: bool) -> None:
        """Drop the gradients."""
        for weight in self._method.parameters():
            weight.grad = None


def lengths(
    store: Images, patients: int, sigma: float, weights: dict[str, Tensor] | None
) -> tuple[float, float, float]:
    """Mean signal, noise and agreement of ten steps at a site of the first so many patients, in clipping bounds."""
    method = build()
    if weights is not None:
        method.load_state_dict(weights)
    own = Images(store.batch(np.arange(patients)), list(range(patients)))
    still: Any = Still(method)
    learner = Learner(method, build_algorithm(FedAvgConfig()), still, CPU)
    step = PrivateStep(learner, own, privacy_of(patients, max(1, patients // 4)), sigma, 250)
    with measured() as found:
        for _ in range(10):
            step.take()
    each = np.sqrt(np.asarray(found).reshape(10, -1, 2).sum(axis=1)) / CLIP  # [10, 2]
    signal, noise_ = each.mean(axis=0)
    return float(signal), float(noise_), float(each[:, 0].sum() / max(1, step.facts.patients))


def site_rows(store: Images, trained: dict[str, Tensor]) -> list[dict[str, float]]:
    """The first table."""
    numbers = sum(weight.numel() for weight in build().parameters() if weight.requires_grad)
    rows = []
    for patients in SITES:
        per_step = max(1, patients // 4)
        sigma = noise_for(EPSILON, DELTA, per_step / patients, STEPS)
        signal, noise_, agreement = lengths(store, patients, sigma, None)
        later, _, later_agreement = lengths(store, patients, sigma, trained)
        rows.append(
            {
                "patients": patients,
                "per_step": per_step,
                "sigma": sigma,
                "formula": sigma * math.sqrt(numbers),
                "noise": noise_,
                "signal": signal,
                "agreement": agreement,
                "later_signal": later,
                "later_agreement": later_agreement,
                "best": signal_to_noise(sigma, per_step, STEPS, numbers),
                "measured": math.sqrt(STEPS) * later / noise_,
            }
        )
        print(rows[-1], flush=True)
    return rows


def held_out_loss(method: Method, store: Images) -> float:
    """On the images, with the same masks every time."""
    generator = torch_generator(0, "benchmark", "held out")
    batch = BatchReader(store, None, CPU).read(torch.arange(len(store)), generator)
    with torch.no_grad():
        return float(method.loss(method.make_views(batch, generator))[0])


def learnt(store: Images, held: Images, sigma: float, weights: dict[str, Tensor] | None) -> tuple[float, float]:
    """Held-out loss before and after ``TRAINED_STEPS`` private steps."""
    method = build()
    if weights is not None:
        method.load_state_dict(weights)
    before = held_out_loss(method, held)
    training = TrainingConfig(batch=250, learning_rate=PEAK * 256 / PER_STEP, betas=(0.9, 0.95))
    optimiser = build_optimiser(method, training)
    learner = Learner(method, build_algorithm(FedAvgConfig()), optimiser, CPU)
    step = PrivateStep(learner, store, privacy_of(len(store), PER_STEP), sigma, 250)
    for number in range(TRAINED_STEPS):
        set_rates(optimiser, training, method, (number + 0.5) / TRAINED_STEPS, PER_STEP)
        step.take()
    return before, held_out_loss(method, held)


def ratio_rows(store: Images, held: Images, trained: dict[str, Tensor]) -> list[dict[str, float | None]]:
    """The second table."""
    numbers = sum(weight.numel() for weight in build().parameters() if weight.requires_grad)
    rows: list[dict[str, float | None]] = []
    for ratio in (*RATIOS, None):
        sigma = _LITTLE if ratio is None else signal_to_noise(1.0, PER_STEP, TRAINED_STEPS, numbers) / ratio
        before, after = learnt(store, held, sigma, None)
        later, last = learnt(store, held, sigma, trained)
        found = {"random_before": before, "random_after": after, "trained_before": later, "trained_after": last}
        rows.append({"ratio": ratio, "sigma": sigma, **found})
        print(rows[-1], flush=True)
    return rows


def page(sites: Sequence[dict[str, float]], ratios: Sequence[dict[str, float | None]]) -> list[str]:
    """Both tables."""
    number: Callable[[Any], str] = lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: E731
    first = [
        [
            f"{int(row['patients']):,}",
            f"{int(row['per_step']):,}",
            f"{row['sigma']:.2f}",
            number(row["formula"]),
            number(row["noise"]),
            f"{number(row['signal'])} ({row['agreement']:.2f})",
            f"{number(row['later_signal'])} ({row['later_agreement']:.2f})",
            f"{row['best']:.3f}",
            f"{row['measured']:.3f}",
        ]
        for row in sites
    ]
    signals = ["signal, random weights (agreement)", "after 300 plain steps"]
    ratio_columns = ["best ratio of the study", "measured ratio"]
    header = ["patients a site", "a step", "noise", "noise length, formula", "measured", *signals, *ratio_columns]
    second = [
        [
            "no noise" if row["ratio"] is None else f"{row['ratio']:g}",
            "0" if row["ratio"] is None else f"{row['sigma']:.2f}",
            *(f"{row[f'{which}_before']:.3f} to {row[f'{which}_after']:.3f}" for which in ("random", "trained")),
        ]
        for row in ratios
    ]
    return [
        *table(header, first),
        "",
        f"Warned of under a best ratio of {LEAST_SIGNAL:g}.",
        "",
        *table(["best ratio", "noise", "held-out loss from random weights", "from trained weights"], second),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the folder that holds pneumoniamnist_trimmed")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train, held = images_of(asked.root)
    trained = plainly_trained(train)
    sites, ratios = site_rows(train, trained), ratio_rows(train, held, trained)
    write_json(RESULTS / "privacy/signal.json", {"sites": sites, "ratios": ratios})
    text = write_result("privacy/signal", "Signal and noise of private steps", __doc__, page(sites, ratios))
    write_text(RESULTS / "privacy/signal.md", text.replace(str(asked.root), "FOLDER"))


if __name__ == "__main__":
    main()
