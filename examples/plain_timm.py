"""A pretrained encoder in plain timm: nothing of fedpretext is imported, or need be installed.

fedpretext export RUN --to timm
python examples/plain_timm.py RUN/export/federated-fold-0-seed-0-timm IMAGE...

An encoder with `norm: group` takes one argument more in create_model: the folder's README.md has the line.
"""

import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image


def standardised(images: torch.Tensor, how: str, mean: list[float], std: list[float]) -> torch.Tensor:
    """Images ``[B, C, H, W]`` in [0, 1] as the encoder saw them: by constants, or by each image's or channel's own."""
    if how == "fixed":
        return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    axes = (2, 3) if how == "channel" else (1, 2, 3)
    deviation = images.std(axes, correction=0, keepdim=True)
    return (images - images.mean(axes, keepdim=True)) / deviation.clamp(min=0.01)


def main(folder: str | Path, *files: str | Path) -> torch.Tensor:
    """Features ``[B, D]`` of 8-bit images. The folder's README.md says how other images are brought to [0, 1]."""
    about = json.loads((Path(folder) / "config.json").read_text())
    seen = about["pretrained_cfg"]
    encoder = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    channels, height, width = seen["input_size"]
    opened = [Image.open(file).convert("L" if channels == 1 else "RGB").resize((width, height)) for file in files]
    pixels = np.stack([np.asarray(image, dtype=np.float32) for image in opened]) / 255
    images = torch.from_numpy(pixels).reshape(len(files), height, width, channels).permute(0, 3, 1, 2)
    how = about["fedpretext"]["standardise"]
    with torch.no_grad():
        features: torch.Tensor = encoder(standardised(images, how, seen["mean"], seen["std"]))
    return features


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
