"""A step with privacy by patient against a plain step of the same images, in turns in the same run.

    python -m benchmarks.privacy.step [--repetitions 5] [--only tiny]

Both steps are whole: reading the images, views, gradients, AdamW. The private one (client/privacy/step.py) draws its
patients, clips each patient's gradient and adds noise; its sampling rate is 1, so that both see the same number. A
patient gives one image, the default, or four, of which the gradient of the mean is clipped. The steps of the larger
encoder go through in several pieces, of which a plain step adds up the gradients. Noise is drawn once a step, whatever
its size: its share is in a column of its own. CPU, one thread, seconds of the process.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks.measure import interleaved, judged, median_ratio, table, write_result
from benchmarks.privacy.audit_game import Images
from client.privacy.step import PrivateStep
from client.training.batches import BatchReader
from client.training.optimiser import build_optimiser
from client.training.round import Learner
from federation.algorithms import build_algorithm
from federation.algorithms.fedavg import FedAvgConfig
from federation.privacy import noise
from federation.privacy.config import PatientPrivacyConfig
from federation.training_config import TrainingConfig
from foundation.randomness import torch_generator
from imaging.config import ImageConfig
from ssl_methods import AnyMethodConfig, build_method
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Method

TARGET = 2.0
CPU = torch.device("cpu")
SIGMA = 1.0  # its value has no influence on time


@dataclass(frozen=True)
class Case:
    """A method and an encoder; ``patients`` in a step, computed ``chunk`` images at a time."""

    name: str
    method: str
    encoder: dict[str, Any]
    size: int
    patients: int
    chunk: int
    images_per_patient: int = 1

    def build(self) -> Method:
        """The method, in training mode."""
        config = TypeAdapter(AnyMethodConfig).validate_python({"name": self.method})
        image = ImageConfig(modality="x-ray", size=self.size, channels=1)
        return build_method(config, EncoderConfig.model_validate(self.encoder), image, 0).train()

    def store(self) -> Images:
        """Smooth images, so many a patient."""
        count = self.patients * self.images_per_patient
        small = torch.rand(count, 1, 8, 8, generator=torch_generator(0, "benchmark"))
        images = torch.nn.functional.interpolate(small, size=self.size, mode="bicubic").clamp(0, 1)
        return Images(images, [number // self.images_per_patient for number in range(count)])


TINY = {"name": "vit_tiny_patch16_224", "patch_size": 4, "depth": 6}
SMALL = {"name": "vit_small_patch16_224"}
CASES = (
    Case("tiny", "mae", TINY, 32, 128, 128),
    Case("tiny-four", "mae", TINY, 32, 32, 128, 4),
    Case("tiny-ijepa", "ijepa", TINY, 32, 128, 128),
    Case("tiny-frozen", "mae", {**TINY, "frozen_blocks": 3}, 32, 128, 128),
    Case("small", "mae", SMALL, 224, 64, 16),
)


def plain(case: Case) -> Callable[[], None]:
    """A step without privacy."""
    method, store = case.build(), case.store()
    optimiser, reader = _optimiser(method), BatchReader(store, None, CPU)
    generator = torch_generator(0, "benchmark", "views")

    def step() -> None:
        method.before_step(0.5)
        order = torch.randperm(len(store), generator=generator)
        chunks = torch.split(order, case.chunk)
        for chosen in chunks:
            loss, _ = method.loss(method.make_views(reader.read(chosen, generator), generator))
            torch.autograd.backward(loss / len(chunks))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        method.after_step(0.5, len(store))

    return step


def private(case: Case) -> Callable[[], None]:
    """A step with it."""
    method, store = case.build(), case.store()
    count, each = case.patients, case.images_per_patient
    privacy = PatientPrivacyConfig(
        epsilon=8, delta=1e-5, patients=count, patients_per_step=count, images_per_patient=each
    )
    learner = Learner(method, build_algorithm(FedAvgConfig()), _optimiser(method), CPU)
    taken = PrivateStep(learner, store, privacy, SIGMA, case.chunk)

    def step() -> None:
        method.before_step(0.5)
        taken.take()
        method.after_step(0.5, len(store))

    return step


def noise_alone(case: Case) -> Callable[[], None]:
    """The noise of a step."""
    trained = [weight.detach() for weight in case.build().parameters() if weight.requires_grad]

    def draw() -> None:
        for weight in trained:
            noise.noised(weight, SIGMA)

    return draw


def _optimiser(method: Method) -> torch.optim.AdamW:
    optimiser = build_optimiser(method, TrainingConfig(batch=16, learning_rate=1e-4, betas=(0.9, 0.95)))
    for group in optimiser.param_groups:
        group["lr"] = 1e-4
    return optimiser


def measure(case: Case, repetitions: int) -> tuple[list[str], float]:
    """The table's row of a case, and private over plain."""
    trained = sum(weight.numel() for weight in case.build().parameters() if weight.requires_grad)
    alternatives = {"plain": plain(case), "private": private(case), "noise": noise_alone(case)}
    seconds = interleaved(alternatives, repetitions, time.process_time)
    medians = [statistics.median(seconds[name]) for name in alternatives]
    ratio = median_ratio(seconds["private"], seconds["plain"])
    frozen = f", {case.encoder['frozen_blocks']} frozen" if "frozen_blocks" in case.encoder else ""
    encoder = f"{case.encoder['name'].split('_patch')[0]}{frozen}"
    sizes = [f"{case.patients} x {case.images_per_patient}", str(case.chunk), f"{trained / 1e6:.1f} M"]
    times = [f"{value:.3f}" for value in medians]
    return [case.method, encoder, f"{case.size} px", *sizes, *times, f"{ratio:.2f}"], ratio


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], default=[c.name for c in CASES])
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows, ratios = [], []
    for case in CASES:
        if case.name in asked.only:
            row, ratio = measure(case, asked.repetitions)
            rows.append(row)
            print(*row, flush=True)
            if case.images_per_patient == 1:
                ratios.append(ratio)
    sizes = ["image", "patients x images", "at a time", "trained"]
    header = ["method", "encoder", *sizes, "plain s", "private s", "noise s", "private / plain"]
    lines = [*table(header, rows), "", f"Medians of {asked.repetitions} interleaved repetitions.", ""]
    lines += [judged("private over plain, one image a patient, largest", max(ratios), TARGET)] if ratios else []
    print(write_result("privacy/step", "Cost of privacy by patient", __doc__, lines))


if __name__ == "__main__":
    main()
