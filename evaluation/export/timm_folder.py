"""A folder in timm's and Hugging Face's layout: config.json, model.safetensors, README.md; and reading one back.

``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads it. A network of MONAI's, for volumes, has the same
three files; the card says how plain MONAI loads them.
"""

from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError
from torch import nn

from evaluation.export.recipe import standardisation, standardisation_text, timm_statistics
from evaluation.export.source import Source
from foundation.errors import RunError
from foundation.files import read_json, write_json, write_text
from foundation.tensor_files import save_tensors
from imaging.config import ImageConfig
from ssl_methods.encoders.outputs import feature_dim
from ssl_methods.encoders.table import EncoderConfig, encoder_kind
from ssl_methods.encoders.timm_encoders import norm_code, timm_arguments, timm_line
from ssl_methods.encoders.volume_encoders import monai_arguments

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
OWN_KEY = "fedpretext"
_MAP_MEAN = "{}[-1].flatten(2).mean(dim=2)"
_FACTS = ("kind", "fold", "seed", "method", "training_hash")


def loading(source: Source) -> str:
    """How the folder is loaded, as Markdown for the card."""
    if source.volumes:
        code = loading_code(source, WEIGHTS_NAME)
        return "\n".join(["With plain MONAI, in this folder:", "", "```python", *code, "```"])
    norm = norm_code(source.config)  # config.json holds plain values only
    return "\n".join(
        [
            "With plain timm; `num_classes=2` gives it a fresh head for fine-tuning:",
            "",
            "```python",
            *(["import functools", ""] if norm else []),
            "import timm",
            "",
            f'encoder = timm.create_model("local-dir:FOLDER", pretrained=True{norm and ", " + norm}).eval()',
            "features = encoder(prepare(pixels))",
            "```",
        ]
    )


def loading_code(source: Source, weights: str = "encoder.safetensors") -> list[str]:
    """Lines of Python that load the file ``weights`` with plain timm or MONAI, and encode an image."""
    line = timm_line(source.config, source.image).replace("encoder.safetensors", weights)
    first = [] if source.volumes else ["import timm", ""]
    return [
        *first,
        *line.split("; "),
        "encoder.eval()",
        f"features = {pooled_code(source, 'encoder(prepare(pixels))')}",
    ]


def pooled_code(source: Source, output: str) -> str:
    """The Python expression for pooled features ``[B, D]`` of ``output``, what the network returns."""
    if not source.volumes:
        return output
    return f"{output}[0].mean(dim=1)" if encoder_kind(source.config.name) == "vit" else _MAP_MEAN.format(output)


def write_folder(source: Source, folder: Path, card: str) -> None:
    """Write the three files into ``folder``; ``card``: Markdown, which gets Hugging Face's front matter."""
    encoder = source.build()
    write_json(folder / CONFIG_NAME, _volume_config(source, encoder) if source.volumes else _config(source, encoder))
    save_tensors(folder / WEIGHTS_NAME, encoder.state_dict(), {"format": "pt"})
    write_text(folder / CARD_NAME, front_matter(source) + card)


def read_folder(path: Path) -> tuple[EncoderConfig, ImageConfig, Path]:
    """Encoder, how it sees an image, and the file of weights of a folder that ``write_folder`` wrote.

    RunError where a part is missing or damaged, or another program wrote the folder.
    """
    weights = path / WEIGHTS_NAME
    value = read_json(path / CONFIG_NAME)
    own = value.get(OWN_KEY) if isinstance(value, dict) else None
    if own is None:
        raise RunError(
            f"{path / CONFIG_NAME}: has no section {OWN_KEY!r}, so it does not say how the encoder sees an image; "
            f"give its weights alone, as NAME={weights}"
        )
    if not weights.is_file():
        raise RunError(f"{weights}: is missing beside its {CONFIG_NAME}; export it again")
    try:
        return EncoderConfig.model_validate(own["encoder"]), ImageConfig.model_validate(own["image"]), weights
    except (KeyError, TypeError, ValidationError) as error:
        what = str(error).splitlines()[0]
        raise RunError(f"{path / CONFIG_NAME}: does not describe an encoder ({what}); export it again") from error


def _config(source: Source, encoder: nn.Module) -> dict[str, Any]:
    """config.json as timm reads it."""
    arguments = timm_arguments(source.config.model_copy(update={"drop_path": 0.0}), source.image)
    arguments = {name: value for name, value in arguments.items() if name not in ("pretrained", "drop_path_rate")}
    stated = cast(Any, encoder).pretrained_cfg
    mean, deviation = timm_statistics(source.image)
    pretrained = {
        "input_size": list(source.image.shape),
        "fixed_input_size": encoder_kind(source.config.name) == "vit",
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "border",  # the whole image, its proportions kept
        "mean": mean,
        "std": deviation,
        "num_classes": 0,
        "first_conv": stated.get("first_conv"),
        "classifier": stated.get("classifier"),
        "description": f"Standardised {standardisation_text(source.image)}; see {CARD_NAME}",
    }
    return {
        "architecture": source.config.name,
        "num_classes": 0,
        "num_features": feature_dim(encoder),
        "model_args": arguments,
        "pretrained_cfg": pretrained,
        OWN_KEY: _own(source),
    }


def _volume_config(source: Source, encoder: nn.Module) -> dict[str, Any]:
    """config.json of a network of MONAI's: its class and that class's arguments."""
    return {
        "architecture": network_name(encoder),
        "num_features": feature_dim(encoder),
        "model_args": network_arguments(source),
        "input_size": list(source.image.shape),
        OWN_KEY: _own(source),
    }


def network_name(encoder: nn.Module) -> str:
    """Its class, as it is imported."""
    return f"{type(encoder).__module__}.{type(encoder).__qualname__}"


def network_arguments(source: Source) -> dict[str, Any]:
    """Keyword arguments of the network of MONAI's, for volumes."""
    arguments = monai_arguments(
        source.config.name,
        source.image,
        patch_size=source.config.patch_size,
        depth=source.config.depth,
        width=source.config.width,
        heads=source.config.heads,
        drop_path=0.0,
    )
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}


def _own(source: Source) -> dict[str, Any]:
    """What this project needs to take the encoder up again, and to say where it came from."""
    return {
        "encoder": source.config.model_dump(mode="json"),
        "image": source.image.model_dump(mode="json"),
        "standardise": standardisation(source.image),
        **{name: source.facts[name] for name in _FACTS if name in source.facts},
    }


def front_matter(source: Source) -> str:
    """Hugging Face's front matter. The licence is ``other``: it follows from the images, which no code knows."""
    tags = ["federated-learning", "self-supervised-learning", "medical-imaging", source.image.modality]
    value = {
        "library_name": "monai" if source.volumes else "timm",
        "pipeline_tag": "image-feature-extraction",
        "license": "other",
        "license_name": "see-section-licence",
        "tags": tags,
    }
    return f"---\n{yaml.safe_dump(value, sort_keys=False)}---\n"
