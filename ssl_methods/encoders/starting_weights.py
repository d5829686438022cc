"""Starting weights: a file's tensors (natural images, an earlier study) fitted into a study's encoder.

Only tensors are read: ``torch.load`` runs with ``weights_only=True``, and no code in a file is ever run.
"""

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from foundation import vision_import
from foundation.errors import RunError, StudyError
from foundation.tensor_files import load_tensors
from foundation.wording import words
from ssl_methods.encoders import efficientnet_names
from ssl_methods.encoders.outputs import grid_shape
from ssl_methods.method import Method

_NESTS = ("state_dict", "model_state_dict", "model", "model_ema", "teacher", "encoder", "backbone", "student")
"""Keys under which training code puts the tensors, in the order in which one is chosen."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "encoder.", "backbone.", "base_encoder.", "encoder_q.", "teacher.")
"""What training code puts before an encoder's names."""
_POSITIONS = ("pos_embed", "patch_embedding.position_embeddings")
"""timm's and MONAI's position embedding."""
_EXAMPLES = words("""
    vit_small_patch16_224 resnet18 resnet50 resnetv2_50 convnext_tiny densenet121 tf_efficientnet_lite0 regnety_002
""")
"""One timm model a family, to say which one a file that does not match is nearest to."""


@dataclass(frozen=True)
class Fitted:
    """What became of the tensors of encoder and file: names in the encoder's order, those unused in the file's."""

    matched: tuple[str, ...]
    """Taken over, the adapted ones among them."""
    adapted: tuple[str, ...]
    """Taken over in another shape: the first layer, the position embedding."""
    fresh: tuple[str, ...]
    """Not in the file: they stay as the study's seed drew them."""
    unused: tuple[str, ...]
    """Of the file only: heads, class tokens, decoders."""
    note: str = ""

    def line(self, source: str) -> str:
        """One line for a person."""
        total = len(self.matched) + len(self.fresh)
        parts = [f"{len(self.matched)} of {total} tensors matched", f"{len(self.adapted)} adapted"]
        if self.adapted:
            parts[-1] += f" ({', '.join(self.adapted)})"
        parts.append(f"{len(self.unused)} of the file unused")
        if self.note:
            parts.append(self.note)
        if 2 * len(self.matched) < total:
            parts.append("less than half: see that encoder.name is the one the weights were made with")
        return f"weights {source}: {', '.join(parts)}"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a torch file (``.pth``, ``.pt``, ``.bin``), by name, on the CPU.

    A torch file may hold them one or more levels down (``state_dict``, ``model``, ``teacher``, ...). StudyError when
    the file is missing, cannot be read without running code in it, or holds no tensors.
    """
    _require(path)
    if path.suffix == ".safetensors":
        try:
            return load_tensors(path)[0]
        except RunError as error:
            raise StudyError(f"weights {error}; fetch the file again") from error
    try:
        # Training code keeps its command line in its files; a Namespace is a plain holder of values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            value = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise StudyError(
            f"weights {path}: is damaged or holds more than tensors, and code in a file is not run; "
            "save its state dict as .safetensors and give that"
        ) from error
    return _unwrapped(value, path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file of weights, as ``sha256sum`` prints it; StudyError when there is no such file."""
    _require(path)
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _require(path: Path) -> None:
    if not path.is_file():
        raise StudyError(f"weights {path}: there is no such file; give the path of a .safetensors or .pth file")


def _unwrapped(value: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(value, Mapping):
        found = {str(name): tensor.detach() for name, tensor in value.items() if isinstance(tensor, Tensor)}
        if found:
            return found
        value = next((value[nest] for nest in _NESTS if isinstance(value.get(nest), Mapping)), None)
    raise StudyError(f"weights {path}: holds no tensors by name; give a file with a model's state dict")


def timm_weights(name: str) -> dict[str, Tensor]:
    """timm's own pretrained weights of the model ``name``, downloaded or from timm's cache.

    StudyError when there are none for this name or they cannot be downloaded.
    """
    try:
        model: nn.Module = vision_import.timm.create_model(name, pretrained=True)
    except Exception as error:  # of timm, the hub, the network and the disk alike
        what = f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0][:200]
        raise StudyError(
            f"weights timm: those of {name!r} could not be had ({what}); give simulation.weights the path of a file, "
            "or choose an encoder that timm has weights for"
        ) from error
    return model.state_dict()


def start_from(method: Method, tensors: Mapping[str, Tensor], source: str = "file") -> Fitted:
    """Fit ``tensors`` into a method's encoder; parts that follow the encoder (a momentum encoder) start from it too."""
    fitted = fit_weights(method.encoder, tensors, source)
    method.start_local_parts()
    return fitted


def fit_weights(encoder: nn.Module, tensors: Mapping[str, Tensor], source: str = "file") -> Fitted:
    """Put ``tensors`` into ``encoder`` where names match, prefixes of training code (``module.``, ...) put aside.

    Two tensors may differ in shape: the first layer in its input channels (``adapt_channels``) and a ViT's position
    embedding in its grid (``adapt_positions``), which is taken over also where the file's is a learned one, and is as
    fixed as the one it replaces. Heads and class tokens have no place in an encoder here and are left out. StudyError
    when no tensor matches, when one matches by name, not by shape, and when the file's layers are normalised by the
    batch and the encoder's are not, or the other way; nothing of the encoder is changed then.
    """
    own = encoder.state_dict()
    named, used = _best_names(encoder, dict(tensors))
    _check_norms(encoder, named, source)
    new: dict[str, Tensor] = {}
    adapted = []
    for name, before in own.items():
        if name not in named:
            continue
        value = named[name]
        if value.shape != before.shape:
            value = _adapted(encoder, name, value, before, source)
            adapted.append(name)
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise StudyError(
                f"weights {source}: tensor {name!r} holds numbers that are not finite; fetch the file again"
            )
        new[name] = value.to(before.dtype)
    if not any(value.numel() > 1 for value in new.values()):
        raise _none_matched(encoder, dict(tensors), source)
    encoder.load_state_dict(own | new)
    note = efficientnet_names.padding_note(encoder) if efficientnet_names.is_foreign(dict(tensors)) else ""
    return Fitted(
        matched=tuple(new),
        adapted=tuple(adapted),
        fresh=tuple(name for name in own if name not in new),
        unused=tuple(name for name in tensors if used.get(name) not in new),
        note=note,
    )


def _best_names(encoder: nn.Module, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under the names that have most in common with the encoder's, and that name by the file's."""
    own = encoder.state_dict().keys()
    plain = {name: name for name in tensors}
    best, most = plain, -1
    waiting = [plain]
    while waiting:
        names = waiting.pop(0)
        common = len(own & set(names.values()))
        if common > most:
            best, most = names, common
        for prefix in _PREFIXES:
            inside = {old: new.removeprefix(prefix) for old, new in names.items() if new.startswith(prefix)}
            if inside:
                waiting.append(inside)
    named = {new: tensors[old] for old, new in best.items()}
    if efficientnet_names.is_foreign(tensors) and (renamed := efficientnet_names.timm_names(encoder, tensors)):
        return renamed, dict(zip(tensors, renamed, strict=True))
    return named, best


def _check_norms(encoder: nn.Module, named: dict[str, Tensor], source: str) -> None:
    """StudyError where a layer is BatchNorm in the file and GroupNorm in the encoder, or the other way.

    The names are the same, but the scales that suit statistics over a batch do not suit those of a single image.
    """
    for name, layer in encoder.named_modules():
        kept = f"{name}.running_var" in named
        if isinstance(layer, nn.GroupNorm) and kept:
            theirs, ours, norm = "BatchNorm", "GroupNorm", "own"
        elif isinstance(layer, _BatchNorm) and f"{name}.weight" in named and not kept:
            theirs, ours, norm = "a norm without running statistics", "BatchNorm", "group"
        else:
            continue
        raise StudyError(
            f"weights {source}: layer {name!r} is {theirs} there and {ours} in this encoder, and weights that go with "
            f"one do not suit the other; set encoder.norm: {norm}, or give weights of an encoder normalised as this one"
        )


def _adapted(encoder: nn.Module, name: str, value: Tensor, before: Tensor, source: str) -> Tensor:
    """``value`` in the shape of ``before``; StudyError where there is no way."""
    same = value.ndim == before.ndim and value.shape[0] == before.shape[0] and value.shape[2:] == before.shape[2:]
    if name == f"{_first_layer(encoder)}.weight" and value.ndim > 2 and same:
        return adapt_channels(value, before.shape[1])
    grid = grid_shape(encoder) if name in _POSITIONS else ()
    if grid and value.ndim == 3 and value.shape[-1] == before.shape[-1] and _grid_of(value, len(grid))[1]:
        return adapt_positions(value, grid)
    patches = "patch_embed" in name and name not in _POSITIONS and value.ndim == before.ndim
    remedy = "set encoder.patch_size to theirs" if patches else "set encoder to the one they were made with"
    raise StudyError(
        f"weights {source}: tensor {name!r} is {list(value.shape)}, "
        f"but this encoder's is {list(before.shape)}; {remedy}"
    )


def _first_layer(encoder: nn.Module) -> str:
    """The name of the layer that reads the image: as timm states it, else the first convolution; "" if none."""
    stated = (getattr(encoder, "pretrained_cfg", None) or {}).get("first_conv") or [
        name for name, layer in encoder.named_modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)
    ]
    return stated if isinstance(stated, str) else next(iter(stated), "")


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """The first layer's weight ``[out, K, ...]`` for another number C of input channels: ``[out, C, ...]``.

    One channel: the sum over k, so that a grey image gives what it gave copied into K channels. More: W'[:, c] =
    K / C * W[:, c mod K], which keeps that for C = 2K, 3K, ... and the size of the response else (K / C is 3 / C for
    natural images; the usual practice, timm's too).
    """
    known = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    order = torch.arange(channels) % known
    return weight[:, order] * (known / channels)


def adapt_positions(positions: Tensor, grid: tuple[int, ...]) -> Tensor:
    """A position embedding ``[1, p + n ** d, D]`` for ``grid`` patches, d = 2 or 3: ``[1, product of grid, D]``.

    The p positions of class tokens (0, 1 or 2) come first and are dropped. A square is resampled bicubically, with
    antialiasing as timm's is, a cube trilinearly.
    """
    prefix, side = _grid_of(positions, len(grid))
    places = positions[:, prefix:].float().reshape(1, *[side] * len(grid), -1).movedim(-1, 1)  # [1, D, n, n]
    if tuple(places.shape[2:]) != grid:
        flat = len(grid) == 2
        mode = "bicubic" if flat else "trilinear"
        places = functional.interpolate(places, grid, mode=mode, antialias=flat, align_corners=False)
    return places.flatten(2).transpose(1, 2)


def _grid_of(positions: Tensor, dimensions: int) -> tuple[int, int]:
    """Class-token positions and the side of the grid; (0, 0) when the patches make no square (3-D: no cube)."""
    for prefix in (0, 1, 2):
        count = positions.shape[1] - prefix
        side = round(max(count, 0) ** (1 / dimensions))
        if side > 1 and side**dimensions == count:
            return prefix, side
    return 0, 0


def _none_matched(encoder: nn.Module, tensors: dict[str, Tensor], source: str) -> StudyError:
    """The error that no tensor matches, with the timm model whose names are nearest to the file's."""
    theirs, ours = next(iter(tensors), "nothing"), next(iter(encoder.state_dict()), "nothing")
    scores = {}
    with torch.device("meta"):
        for example in _EXAMPLES:
            model = vision_import.timm.create_model(example, num_classes=0)
            named, _ = _best_names(model, {name: value.to("meta") for name, value in tensors.items()})
            own = model.state_dict()
            scores[example] = sum(name in own and own[name].shape == value.shape for name, value in named.items())
    nearest = max(scores, key=lambda example: scores[example])
    remedy = (
        f"they look like timm's {nearest!r} ({scores[nearest]} tensors in common): set encoder.name to it"
        if scores[nearest]
        else "they are of no family that is known here: give weights of a timm model"
    )
    return StudyError(
        f"weights {source}: none of {len(tensors)} tensors matches this encoder (theirs: {theirs!r}, "
        f"the encoder's: {ours!r}); {remedy}"
    )
