"""Golden digests: the weights of six small studies, to hold a change against that must not change any number.

    python -m benchmarks.golden record FILE     before the change
    python -m benchmarks.golden compare FILE    after it, on the same machine

Digests depend on machine, thread count and torch build, so none is kept in the repository.
"""

import hashlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import load_file

from simulation.simulate import pretrain

_VIT = {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 2, "width": 48, "heads": 3}
_CONVOLUTIONAL = {"name": "resnet10t"}
_VOLUME = {"modality": "mri", "size": 24, "depth": 16, "channels": 1}
STUDIES: dict[str, dict[str, Any]] = {
    "mae": {"encoder": _VIT, "method": {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}},
    "simclr": {"encoder": _CONVOLUTIONAL, "method": {"name": "simclr"}},
    "byol": {"encoder": _CONVOLUTIONAL, "method": {"name": "byol"}, "algorithm": {"name": "fedprox"}},
    "ibot": {"encoder": _VIT, "method": {"name": "ibot"}},
    "volume": {
        "image": _VOLUME,
        "encoder": {"name": "monai_vit", "patch_size": 8, "depth": 2, "width": 48, "heads": 3},
        "method": {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
    },
    "secure": {
        "encoder": _VIT,
        "method": {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
        "secure_aggregation": {},
    },
}


def write_images(folder: Path, volumes: bool) -> None:
    """Three sites of twelve patients with two images each, smooth noise, drawn from a fixed seed."""
    draw = np.random.default_rng(11)
    folder.mkdir(parents=True)
    rows = ["image,patient,site,label"]
    for site in ("A", "B", "C"):
        for number in range(24):
            name = f"{site}-{number}.{'nii.gz' if volumes else 'png'}"
            if volumes:
                voxels = np.kron(draw.normal(size=(6, 6, 4)), np.ones((4, 4, 4))).astype(np.float32)
                image: Any = nibabel.Nifti1Image(voxels, np.eye(4))  # type: ignore[no-untyped-call]
                nibabel.save(image, folder / name)
            else:
                pixels = np.kron(draw.integers(0, 256, (8, 8)), np.ones((4, 4))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name)
            rows.append(f"{name},{site}-{number // 2},{site},{number % 2}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")


def digest(weights: Path) -> str:
    """SHA-256 over names, types, shapes and bytes of a safetensors file, in the names' order."""
    summed = hashlib.sha256()
    for name, value in sorted(load_file(weights).items()):
        summed.update(f"{name} {value.dtype} {value.shape}".encode())
        summed.update(value.tobytes())
    return summed.hexdigest()


def run(name: str, place: Path) -> str:
    """Train the federated arm of one of STUDIES and digest all weights that its sites share."""
    changes = STUDIES[name]
    study = {
        "name": name,
        "image": {"modality": "mri", "size": 32, "channels": 1},
        "training": {"batch": 4, "learning_rate": 0.01, "threads": 1},
        "algorithm": {"name": "fedavg"},
        "rounds": {"count": 2, "deadline_minutes": 30},
        "simulation": {"dataset": "folder", "root": str(place / name / "data"), "arms": [], "splits": {"folds": 1}},
        **changes,
    }
    write_images(place / name / "data", "depth" in study["image"])
    file = place / name / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    folder = pretrain(file, runs=place / name / "runs", device="cpu")
    return digest(folder / "arms" / "federated" / "fold-0" / "seed-0" / "global.safetensors")


def main() -> None:
    """Record the digests in a file, or compare with a file; exit code 1 where any differs."""
    verb, file = sys.argv[1], Path(sys.argv[2])
    with TemporaryDirectory() as place:
        found = {name: run(name, Path(place)) for name in STUDIES}
    if verb == "record":
        file.write_text(json.dumps(found, indent=1) + "\n")
        return
    recorded = json.loads(file.read_text())
    for name, value in found.items():
        print(f"{name:10} {'equal' if recorded[name] == value else 'DIFFERS'} {value[:16]}")
    sys.exit(int(recorded != found))


if __name__ == "__main__":
    main()
