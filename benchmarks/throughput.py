"""Images a second of every method's whole local step, as a share of what its encoder passes would allow.

    python -m benchmarks.throughput [--methods mae simclr] [--device auto] [--size 128] [--batch 16]

A step is what a site does: views, loss, gradients, AdamW, momentum encoder. A pass is one forward and backward of one
whole image through the encoder; a pass without gradient (a momentum encoder's) counts a third, a small crop its
share of the image's arithmetic (multiplications, counted by torch), a masked image a whole one. The bare rate is
that of the encoder alone, forward and backward, in turns with the method in the same run. Allowed is bare rate /
passes.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import interleaved, judged, median_ratio, table, write_result
from foundation.machine import choose_device
from foundation.randomness import torch_generator
from imaging.config import ImageConfig
from ssl_methods import METHODS, AnyMethodConfig, build_method
from ssl_methods.encoders.outputs import features
from ssl_methods.encoders.table import EncoderConfig, encoder_kind
from ssl_methods.method import Batch, Method

TARGET = 0.6
ENCODERS = {"vit": "vit_small_patch16_224", "convolutional": "resnet18"}
ON_CONVOLUTIONS = ("spark", "autoencoder", "models_genesis", "rotation", "jigsaw", "relative_patch", "slice_order")
"""Methods that are measured on the convolutional encoder; the others on the ViT."""
OPTIONS: dict[str, dict[str, Any]] = {
    "combine": {"methods": [{"weight": 1.0, "method": {"name": "mae"}}, {"weight": 1.0, "method": {"name": "ijepa"}}]}
}


def encoder_for(name: str) -> EncoderConfig:
    """The encoder that the method is measured on."""
    return EncoderConfig(name=ENCODERS["convolutional" if name in ON_CONVOLUTIONS else "vit"])


def batch_of(image: ImageConfig, count: int, device: torch.device) -> Batch:
    """Smooth images of as many patients, each with another one as its partner."""
    small = torch.rand(count, image.channels, 8, 8, generator=torch_generator(0, "benchmark"))
    images = torch.nn.functional.interpolate(small, size=image.size, mode="bicubic").clamp(0, 1).to(device)
    codes = torch.arange(count, device=device)
    gaps = torch.where(codes % 2 == 0, 1.0, -1.0)
    return Batch(images, codes, codes, codes, images.roll(1, 0), gaps)


def _stem(encoder: nn.Module) -> nn.Module:
    return next(module for module in encoder.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))


class _Costs(dict[int, float]):
    """Arithmetic of a square image of each side, as a share of that of an image of ``whole`` pixels a side."""

    def __init__(self, encoder: nn.Module, channels: int, whole: int) -> None:
        super().__init__()
        self._encoder, self._channels, self._whole = copy.deepcopy(encoder).eval(), channels, whole

    def __missing__(self, side: int) -> float:
        self[side] = self._count(side) / self._count(self._whole)
        return self[side]

    def _count(self, side: int) -> int:
        device = next(self._encoder.parameters()).device
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            features(self._encoder, torch.zeros(1, self._channels, side, side, device=device))
        return int(counter.get_total_flops())


@contextmanager
def counted_passes(method: Method) -> Iterator[list[float]]:
    """Adds up the images that go through the encoder and its copies, in units of a pass of one image."""
    side, kind = method.image.size, type(method.encoder)
    counts: list[float] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        weight = 1.0 if torch.is_grad_enabled() else 1 / 3
        counts.append(weight * len(inputs[0]) * cost[inputs[0].shape[-1]])

    cost = _Costs(method.encoder, method.image.channels, side)
    copies = [module for module in method.modules() if type(module) is kind]
    hooks = [_stem(copy).register_forward_pre_hook(count) for copy in copies]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def passes_a_image(method: Method, batch: Batch) -> float:
    """Encoder passes of one step, an image."""
    method.before_step(0.5)
    views = method.make_views(batch, torch_generator(0, "benchmark"))
    with counted_passes(method) as counts:
        method.loss(views)
    return sum(counts) / len(batch.images)


def step_of(method: Method, batch: Batch) -> Callable[[], None]:
    """One whole local step."""
    trained = [weight for weight in method.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, 1e-4, fused=batch.images.device.type != "mps")
    generator = torch_generator(0, "benchmark", "views")

    def step() -> None:
        method.before_step(0.5)
        loss, _ = method.loss(method.make_views(batch, generator))
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        method.after_step(0.5, len(batch.images))
        _wait(batch.images.device)

    return step


def bare_step(encoder: nn.Module, images: Tensor) -> Callable[[], None]:
    """Forward and backward of the encoder alone."""

    def step() -> None:
        torch.autograd.backward(features(encoder, images).square().mean())
        encoder.zero_grad(set_to_none=True)
        _wait(images.device)

    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measure(name: str, image: ImageConfig, count: int, device: torch.device, repetitions: int) -> list[str]:
    """The table's row of one method; its last cell is the share of the allowed rate."""
    config = TypeAdapter(AnyMethodConfig).validate_python({"name": name, **OPTIONS.get(name, {})})
    encoder = encoder_for(name)
    method = build_method(config, encoder, image, 0).to(device).train()
    bare = build_method(config, encoder, image, 0).encoder.to(device).train()
    batch = batch_of(image, count, device)
    passes = passes_a_image(method, batch)
    seconds = interleaved({"step": step_of(method, batch), "bare": bare_step(bare, batch.images)}, repetitions)
    rate = {which: count / statistics.median(times) for which, times in seconds.items()}
    share = passes * median_ratio(seconds["bare"], seconds["step"])
    figures = [f"{rate['step']:.1f}", f"{rate['bare']:.1f}", f"{rate['step'] / rate['bare']:.2f}"]
    return [name, encoder.name, *figures, f"{passes:.2f}", f"{share:.2f}"]


def suits(name: str) -> bool:
    """Whether the method takes 2-D images and the encoder it would be measured on."""
    method = METHODS[name]
    return 2 in method.dimensions and encoder_kind(encoder_for(name).name) in method.encoders


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if suits(name)])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    asked = parser.parse_args()
    device = choose_device(asked.device)
    image = ImageConfig(modality="mri", size=asked.size, channels=1)
    rows = []
    for name in asked.methods:
        rows.append(measure(name, image, asked.batch, device, asked.repetitions))
        print(*rows[-1])
    lowest = min(rows, key=lambda row: float(row[-1]))
    header = ["method", "encoder", "images/s", "bare", "share of bare", "passes", "share of allowed"]
    lines = [
        *table(header, rows),
        "",
        f"{device}, {asked.size} px, batch {asked.batch}, medians of {asked.repetitions} interleaved repetitions.",
        "",
        judged(f"share of the allowed rate, lowest ({lowest[0]})", float(lowest[-1]), TARGET, at_least=True),
    ]
    name = "throughput" if device.type == "cpu" else f"throughput-{device.type}"
    print(write_result(name, "Throughput of every method", __doc__, lines))


if __name__ == "__main__":
    main()
