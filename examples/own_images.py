"""Images of one's own, and a task of one's own on which the encoder is judged afterwards.

python examples/own_images.py           # seconds: on noise, drawn into a new folder own-images/
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import fedpretext as fp

STUDY = """
name: own-images
image: {modality: mri, size: 32, channels: 1}
encoder: {name: vit_tiny_patch16_224, patch_size: 8, depth: 2, width: 48, heads: 2}
method: {name: mae}
training: {batch: 8, learning_rate: 0.01}
algorithm: {name: fedavg}
rounds: {count: 2}
evaluation: {task: bright square, label: square, protocols: [knn], finetune: {epochs: 1}}
simulation: {dataset: folder, arms: []}
"""
TASK = "{task: brightness, kind: regression, label: brightness, protocols: [ridge], finetune: {epochs: 1}}"


def draw_images(folder: Path) -> None:
    """Three hospitals of six patients; the manifest has a row an image, its patient, its site and any labels."""
    draw, rows = np.random.default_rng(0), []
    for site in ("north", "south", "west"):
        for number in range(12):
            square, name = number % 2, f"{site}-{number}.png"
            pixels = draw.integers(0, 128, (32, 32))
            pixels[8:20, 8:20] += 100 * square
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            rows.append([name, f"{site}-{number // 2}", site, square, pixels.mean()])
    columns = ["image", "patient", "site", "square", "brightness"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)


def main(folder: Path) -> pd.DataFrame:
    """Pretrain on the images, then ask for another label than the study's, on the split that was drawn before."""
    (folder / "images").mkdir(parents=True)
    draw_images(folder / "images")
    (folder / "study.yaml").write_text(STUDY)
    (folder / "brightness.yaml").write_text(TASK)
    run = fp.pretrain(folder / "study.yaml", [f"simulation.root={folder / 'images'}"], runs=folder, device="cpu")
    judged = fp.evaluate(run, task=folder / "brightness.yaml", out=folder / "brightness")
    print(f"report: {judged.report}")
    return judged.results


if __name__ == "__main__":
    print(
        main(Path("own-images").absolute()).query("site == 'all'")[["encoder", "metric", "value", "ci_low", "ci_high"]]
    )
