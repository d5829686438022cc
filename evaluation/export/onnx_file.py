"""An encoder as an ONNX file that is put in place only after its outputs were compared with the encoder's."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from evaluation.export.recipe import standardisation_text
from evaluation.export.source import Source
from foundation.errors import RunError
from foundation.files import write_bytes, write_text
from foundation.randomness import torch_generator
from foundation.vision_import import VisionTransformer
from ssl_methods.encoders.outputs import feature_maps, features, grid_shape, patch_tokens
from ssl_methods.encoders.volume_encoders import is_volume_encoder, is_volume_vit

FILE_NAME = "encoder.onnx"
CARD_NAME = "README.md"
INPUT, OUTPUTS = "images", ("features", "feature_map")
OPSET = 18
"""The lowest that torch's exporter writes without converting: the most runtimes read it."""
BATCHES = (1, 2, 5)
TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the output's largest value; float32 sums differ by about 1e-6."""
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


class _Outputs(nn.Module):
    """Pooled features ``[B, D]`` and the last map ``[B, D, h, w]`` (3-D: ``[B, D, d, h, w]``) of one pass.

    The same figures as ``features`` and ``feature_maps``, without a length of the batch that tracing would fix.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.encoder, VisionTransformer) or is_volume_vit(self.encoder):
            tokens = patch_tokens(self.encoder, images)  # [B, N, D]
            return tokens.mean(dim=1), torch.unflatten(tokens.transpose(1, 2), 2, grid_shape(self.encoder))
        maps = feature_maps(self.encoder, images)
        if is_volume_encoder(self.encoder):
            return maps.flatten(2).mean(dim=2), maps
        model = cast(Any, self.encoder)
        last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return cast(Tensor, model.forward_head(maps.permute(0, 2, 3, 1) if last else maps)), maps


def loading(source: Source) -> str:
    """How the file is run, as Markdown for the card."""
    shape = ", ".join(map(str, source.image.shape))
    return "\n".join(
        [
            f"With ONNX Runtime, any number of images at a time (float32 `[B, {shape}]`, prepared as below); the "
            "second output is the map before pooling:",
            "",
            "```python",
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("{FILE_NAME}")',
            f'features, feature_map = session.run(None, {{"{INPUT}": prepare(pixels).numpy()}})',
            "```",
        ]
    )


def write_folder(source: Source, folder: Path, card: str) -> None:
    """Write ``encoder.onnx`` and the card into ``folder``.

    RunError where ONNX is not installed, and where the file's outputs are not the encoder's.
    """
    onnx, _, runtime = (_needed(name) for name in _NEEDED)
    encoder = source.build()
    model = _exported(encoder, source)
    _drop_traces(model)
    for key, value in _facts(source).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    data = model.SerializeToString(deterministic=True)
    _compare(runtime, data, encoder, source)
    write_bytes(folder / FILE_NAME, data)
    write_text(folder / CARD_NAME, card)


def _needed(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise RunError(f"export --to onnx needs {name}, which is not here: pip install 'fedpretext[onnx]'") from error


def _exported(encoder: nn.Module, source: Source) -> Any:
    """The encoder as an ONNX ModelProto with a free number of images."""
    images = _images(source, 2)
    with _silent(), torch.no_grad():
        program = torch.onnx.export(
            _Outputs(encoder).eval(),
            (images,),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            verbose=False,
        )
    return cast(Any, program).model_proto


@contextmanager
def _silent() -> Iterator[None]:
    """Without what torch's exporter says of its own inside; whether the file is right is measured afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _drop_traces(model: Any) -> None:
    """Remove the exporter's notes: they hold stack traces, and so the paths of this machine."""
    graph = model.graph
    parts = [model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]
    for function in model.functions:
        parts += [function, *function.node, *function.value_info]
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _facts(source: Source) -> dict[str, str]:
    """What stands in the file about itself."""
    return {
        "encoder": source.config.name,
        "title": source.title,
        "training_hash": str(source.facts.get("training_hash", "")),
        "modality": source.image.modality,
        "input": f"in [0, 1], then standardised: {standardisation_text(source.image)}",
        "image": json.dumps(source.image.model_dump(mode="json", exclude={"augment"}), sort_keys=True),
    }


def _compare(runtime: Any, data: bytes, encoder: nn.Module, source: Source) -> None:
    """RunError where an output of the file is further from the encoder's than ``TOLERANCE``."""
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for count in BATCHES:
        images = _images(source, count)
        with torch.no_grad():
            expected = features(encoder, images), feature_maps(encoder, images)
        found = session.run(list(OUTPUTS), {INPUT: images.numpy()})
        for name, own, other in zip(OUTPUTS, expected, map(torch.from_numpy, found), strict=True):
            apart = float((other - own).abs().max() / own.abs().max()) if other.shape == own.shape else float("inf")
            if not apart <= TOLERANCE:
                raise RunError(
                    f"{source.weights}: as ONNX its {name} of {count} images differ by {apart:.1e} of the largest "
                    f"value, more than {TOLERANCE:g}, so no file is written; use --to timm, or another onnxscript"
                )


def _images(source: Source, count: int) -> Tensor:
    """Noise with the mean and deviation of standardised images, ``[count, *image.shape]``."""
    return torch.randn(count, *source.image.shape, generator=torch_generator(0, "onnx", count))
