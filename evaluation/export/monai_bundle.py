"""An encoder as a MONAI bundle: metadata, a configuration that builds the network, weights, documents, licence note."""

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation.export.recipe import statistics_code
from evaluation.export.source import Source
from evaluation.export.timm_folder import network_arguments, network_name, pooled_code
from foundation.files import write_json, write_text, write_with
from imaging.config import ImageConfig
from ssl_methods.encoders.outputs import feature_dim
from ssl_methods.encoders.table import group_norm_options
from ssl_methods.encoders.timm_encoders import timm_arguments

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
VERSION = "0.1.0"
_MODALITIES = {"ct": "CT", "mri": "MR", "x-ray": "XR", "ultrasound": "US"}
LICENCE = """\
The weights in models/ were made with fedpretext, whose code is under the Apache License 2.0. That licence is of the
code. What may be done with the weights follows from the images they were trained on and from what the sites agreed:
whoever publishes this bundle says so here.
"""


def loading(source: Source) -> str:
    """How the bundle is loaded, as Markdown for the card."""
    return "\n".join(
        [
            "With MONAI, in the bundle's folder (`standardise` is in its configuration, too):",
            "",
            "```python",
            "from monai.bundle import ConfigParser",
            "",
            "parser = ConfigParser()",
            'parser.read_config("configs/inference.json")',
            'parser.get_parsed_content("load")',
            'encoder, pool = parser.get_parsed_content("network"), parser.get_parsed_content("pool")',
            'images = prepare(pixels).to(parser.get_parsed_content("device"))',
            "features = pool(encoder.eval()(images))",
            "```",
        ]
    )


def write_folder(source: Source, folder: Path, card: str) -> None:
    """Write ``configs/``, ``models/model.pt``, ``docs/README.md`` and ``LICENSE`` into ``folder``."""
    encoder = source.build()
    width = feature_dim(encoder)
    write_json(folder / "configs" / "metadata.json", _metadata(source, width))
    write_json(folder / "configs" / "inference.json", _inference(source, encoder))
    # MONAI's own name and format of a bundle's weights; tensors only, so that it loads with weights_only.
    tensors = {name: value.detach().contiguous() for name, value in encoder.state_dict().items()}
    write_with(folder / "models" / "model.pt", lambda handle: torch.save(tensors, handle))
    write_text(folder / "docs" / "README.md", card)
    write_text(folder / "LICENSE", LICENCE)


def _metadata(source: Source, width: int) -> dict[str, Any]:
    """metadata.json by MONAI's schema of a bundle."""
    package = "monai" if source.volumes else "timm"
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: f"Exported from a run; training hash {source.facts.get('training_hash', 'not known')}"},
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": importlib.metadata.version("torch").partition("+")[0],
        "numpy_version": importlib.metadata.version("numpy"),
        "required_packages_version": {package: importlib.metadata.version(package)},
        "name": f"{source.config.name}, {source.kind}",
        "task": "Features of medical images by a self-supervised encoder",
        "description": f"{source.title}. No classifier: a starting point for one.",
        "authors": "The sites of the study",
        "copyright": "See LICENSE: the weights' terms follow from the images they were trained on",
        "intended_use": "Research; not for clinical use",
        "network_data_format": {"inputs": {"image": _input_format(source.image)}, "outputs": {"pred": _made(width)}},
    }


def _input_format(image: ImageConfig) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "magnitude",
        "modality": _MODALITIES.get(image.modality, image.modality),
        "num_channels": image.channels,
        "spatial_shape": list(image.shape[1:]),
        "dtype": "float32",
        "value_range": [],  # standardised: no bounds
        "is_patch_data": False,
        "channel_def": {str(channel): f"channel {channel + 1} of the study" for channel in range(image.channels)},
    }


def _made(width: int) -> dict[str, Any]:
    return {
        "type": "feature",
        "format": "feature",
        "num_channels": width,
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {"0": "features"},
    }


def _inference(source: Source, encoder: nn.Module) -> dict[str, Any]:
    """inference.json: the network, its weights, and the two steps around it as expressions."""
    mean, deviation = statistics_code(source.image)
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": _network(source, encoder),
        "network": "$@network_def.to(@device)",
        "weights": "$@bundle_root + '/models/model.pt'",
        "load": "$@network.load_state_dict(torch.load(@weights, map_location=@device, weights_only=True))",
        "standardise": f"$lambda images: (images - {mean}) / {deviation}",
        "pool": f"$lambda output: {pooled_code(source, 'output')}",
    }


def _network(source: Source, encoder: nn.Module) -> dict[str, Any]:
    if source.volumes:
        return {"_target_": network_name(encoder), **network_arguments(source)}
    arguments = timm_arguments(source.config.model_copy(update={"drop_path": 0.0}), source.image)
    arguments.pop("drop_path_rate", None)  # acts in training only
    if source.config.norm == "group":
        options = group_norm_options(source.config.name)
        arguments["norm_layer"] = {"_target_": "timm.layers.GroupNormAct", "_mode_": "callable", **options}
    return {"_target_": "timm.create_model", "model_name": source.config.name, **arguments}
