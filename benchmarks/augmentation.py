"""Batched views on tensors against torchvision v2 with the same operations on PIL images, on one core.

    python -m benchmarks.augmentation [--repetitions 15]

Both start from decoded bytes in memory (a uint8 tensor, PIL images) and end in a standardised float32 batch. The
operations, their order, probabilities and ranges are those of a preset that torchvision can express; crops are
RandomResizedCrop with bilinear interpolation. Two operations differ in kind: torchvision turns hue in HSV, we in
YIQ; torchvision resamples twice (crop, rotation), we once. CPU seconds of one thread are counted.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from benchmarks.measure import interleaved, judged, median_ratio, table, write_result
from foundation.randomness import torch_generator
from imaging.config import ImageConfig
from imaging.reading.standardise import FIXED_DEVIATION, FIXED_MEAN, FLAT
from imaging.views.augment import Augmentation
from imaging.views.presets import Preset

# isort: split
from torchvision.transforms import InterpolationMode, v2  # type: ignore[import-untyped]  # it ships no types

TARGET = 5.0
CASES = (
    # modality, view, side, channels, images in a batch
    ("x-ray", "strong", 64, 1, 64),
    ("x-ray", "strong", 64, 3, 64),
    ("x-ray", "strong", 224, 1, 32),
    ("fundus", "strong", 64, 3, 64),
    ("fundus", "strong", 224, 3, 32),
    ("fundus", "light", 64, 3, 64),
    ("fundus", "light", 224, 3, 32),
)


class Noise(torch.nn.Module):
    """Additive normal noise with a deviation uniform in [0, largest]: v2.GaussianNoise has a fixed one."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, image: Tensor) -> Tensor:
        """``image`` with noise, clipped to [0, 1]."""
        return (image + self.largest * torch.rand(()) * torch.randn_like(image)).clamp_(0, 1)


class ZScore(torch.nn.Module):
    """Zero mean and unit deviation of each image."""

    def forward(self, image: Tensor) -> Tensor:
        """``image``, standardised."""
        return (image - image.mean()) / image.std(correction=0).clamp(min=FLAT)


def torchvision_pipeline(preset: Preset, view: str, size: int) -> v2.Compose:
    """What ``Augmentation`` does, for one PIL image, with torchvision's own operations wherever it has one."""
    if preset.stain or preset.bias_field or preset.speckle or preset.gamma or preset.cutout or preset.quarter_turns:
        raise ValueError("the preset has operations that torchvision lacks: nothing to compare with")
    strong = view == "strong"
    scale = preset.crop_scale if strong else preset.light_crop_scale
    steps: list[torch.nn.Module] = [v2.RandomResizedCrop(size, scale, preset.crop_ratio, antialias=True)]
    if preset.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(preset.horizontal_flip))
    if preset.vertical_flip:
        steps.append(v2.RandomVerticalFlip(preset.vertical_flip))
    if strong:
        largest = preset.blur * size
        kernel = 2 * max(1, int(-(-3 * largest // 1))) + 1
        jitter = v2.ColorJitter(preset.brightness, preset.contrast, preset.saturation or None, preset.hue or None)
        steps += [
            v2.RandomRotation(preset.rotation_degrees, interpolation=InterpolationMode.BILINEAR),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.01, largest))], preset.blur_probability),
            v2.RandomApply([jitter], preset.jitter_probability),
        ]
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if strong and preset.noise:
        steps.append(v2.RandomApply([Noise(preset.noise)], preset.noise_probability))
    channels_alike = v2.Normalize([FIXED_MEAN], [FIXED_DEVIATION])
    return v2.Compose([*steps, channels_alike if preset.standardise == "fixed" else ZScore()])


def alternatives(modality: str, view: str, size: int, channels: int, count: int) -> dict[str, Callable[[], Tensor]]:
    """Both ways to make one batch of views of the same images."""
    image = ImageConfig.model_validate({"modality": modality, "size": size, "channels": channels})
    augmentation = Augmentation(image)
    small = torch.rand(count, channels, 8, 8, generator=torch_generator(0, "benchmark"))
    smooth = torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
    stored = smooth.mul(255).round().to(torch.uint8)
    pil = [
        Image.fromarray((pixels[0] if channels == 1 else pixels.permute(1, 2, 0)).contiguous().numpy())
        for pixels in stored
    ]
    pipeline = torchvision_pipeline(augmentation.preset, view, size)
    generator = torch_generator(0, "benchmark", "views")
    make = augmentation.strong if view == "strong" else augmentation.light
    return {
        "batched": lambda: make(stored.float().div_(255), generator),
        "torchvision": lambda: torch.stack([pipeline(pixels) for pixels in pil]),
    }


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    torch.manual_seed(0)  # torchvision's transforms know no generator
    rows, ratios = [], []
    for modality, view, size, channels, count in CASES:
        seconds = interleaved(alternatives(modality, view, size, channels, count), repetitions, time.process_time)
        ratios.append(median_ratio(seconds["torchvision"], seconds["batched"]))
        speed = {name: count / statistics.median(times) for name, times in seconds.items()}
        figures = [f"{speed['batched']:.0f}", f"{speed['torchvision']:.0f}", f"{ratios[-1]:.2f}"]
        rows.append([modality, view, f"{channels}x{size}x{size}", *figures])
    lines = [
        *table(["preset", "view", "image", "batched", "torchvision", "ratio"], rows),
        "",
        f"Images per CPU second, medians of {repetitions} interleaved repetitions.",
        "",
        judged("ratio, lowest", min(ratios), TARGET, at_least=True),
        f"- met in {sum(ratio >= TARGET for ratio in ratios)} of {len(ratios)} cases",
    ]
    print(write_result("augmentation", "Batched augmentation against torchvision v2", __doc__, lines))


if __name__ == "__main__":
    main()
