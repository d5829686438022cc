"""What an encoder expects of its input, as Python that needs only numpy and torch: it goes into cards and folders.

timm's mean and deviation are constants of a data set. Where each image is standardised by its own mean and deviation,
nothing in a ``config.json`` can say so; this code does.
"""

from imaging.config import ImageConfig
from imaging.reading.readers import HU_WINDOW, PERCENTILES
from imaging.reading.standardise import FIXED_DEVIATION, FIXED_MEAN, FLAT
from imaging.views.presets import Standardisation, resolve

_WHOLE: dict[Standardisation, str] = {
    "image": "each image to mean 0 and deviation 1",
    "channel": "each channel of each image to mean 0 and deviation 1",
    "fixed": f"all images alike, mean {FIXED_MEAN} and deviation {FIXED_DEVIATION}",
}

_HEAD = '''\
import numpy as np
import torch
from torch.nn.functional import interpolate


def standardise(images):
    """Images [B, {axes}] in [0, 1], standardised: {whole}."""
    mean = {mean}
    deviation = {deviation}
    return (images - mean) / deviation


'''
_UNIT = """\
    if values == "8-bit":
        unit = pixels / np.float32(255)
    else:
        low, high = np.percentile(pixels, {percentiles}, axis={together}, keepdims=True).astype(np.float32)
{window}\
        unit = (pixels - low) / np.where(high > low, high - low, np.float32(np.inf))
        unit = np.clip(unit, 0, 1).astype(np.float32)
"""
_WINDOW = """\
        if values == "physical":
            low, high = np.float32({low}), np.float32({high})
"""
_IMAGE = '''\
def prepare(pixels, values="stored"):
    """An image's own pixels, float32 [{channels}, H, W], to the encoder's input [1, {shape}].

    values: "8-bit" for 0 to 255, "physical" for Hounsfield units, "stored" for any other scale.
    """
{unit}\
    longest = max(unit.shape[1:])
    height, width = (max(1, round(side * {size} / longest)) for side in unit.shape[1:])
    inner = interpolate(torch.from_numpy(unit)[None], (height, width), mode="bilinear", antialias=True)
    top, left = ({size} - height) // 2, ({size} - width) // 2
    square = torch.zeros(1, {shape})
    square[:, :, top : top + height, left : left + width] = inner
    return standardise(square.clamp(0, 1))
'''
_VOLUME = '''\
def prepare(pixels, values="stored", spacing=(1.0, 1.0, 1.0)):
    """A volume's own voxels, float32 [{channels}, D, H, W], to the encoder's input [1, {shape}].

    Slices from the feet to the head, rows from the patient's front, columns from the right. values: "8-bit" for 0 to
    255, "physical" for Hounsfield units, "stored" for any other scale. spacing: millimetres from slice to slice, row to
    row, column to column.
    """
{unit}\
    sides = unit.shape[2] * spacing[1], unit.shape[3] * spacing[2]
    height, width = (max(1, round(side * {size} / max(sides))) for side in sides)
    planes = interpolate(torch.from_numpy(unit), (height, width), mode="bilinear", antialias=True)
    columns = planes.flatten(2)[:, None]
    columns = interpolate(columns, ({depth}, height * width), mode="bilinear", antialias=True)
    top, left = ({size} - height) // 2, ({size} - width) // 2
    block = torch.zeros(1, {shape})
    block[0, :, :, top : top + height, left : left + width] = columns.reshape({channels}, {depth}, height, width)
    return standardise(block.clamp(0, 1))
'''


def standardisation(image: ImageConfig) -> Standardisation:
    """Whether images are standardised by the image, by the channel, or all alike."""
    return resolve(image).standardise


def standardisation_text(image: ImageConfig) -> str:
    """The same in words."""
    return _WHOLE[standardisation(image)]


def statistics_code(image: ImageConfig) -> tuple[str, str]:
    """Python expressions for mean and deviation that ``images``, ``[B, *image.shape]``, are standardised with."""
    how = standardisation(image)
    if how == "fixed":
        return f"{FIXED_MEAN}", f"{FIXED_DEVIATION}"
    axes = tuple(range(2 if how == "channel" else 1, image.dimensions + 2))
    return (
        f"images.mean(dim={axes}, keepdim=True)",
        f"images.std(dim={axes}, correction=0, keepdim=True).clamp(min={FLAT})",
    )


def timm_statistics(image: ImageConfig) -> tuple[list[float], list[float]]:
    """timm's ``mean`` and ``std``: a number a channel. 0 and 1, which change nothing, where constants cannot say it."""
    fixed = standardisation(image) == "fixed"
    mean, deviation = (FIXED_MEAN, FIXED_DEVIATION) if fixed else (0.0, 1.0)
    return [mean] * image.channels, [deviation] * image.channels


def input_code(image: ImageConfig) -> str:
    """Python with ``standardise(images)`` and ``prepare(pixels, values)``: the input as it was in training."""
    axes = "C, D, H, W" if image.depth is not None else "C, H, W"
    mean, deviation = statistics_code(image)
    head = _HEAD.format(axes=axes, whole=standardisation_text(image), mean=mean, deviation=deviation)
    low, high = image.window or HU_WINDOW
    ct = image.modality == "ct"
    unit = _UNIT.format(
        percentiles=PERCENTILES,
        together=tuple(range(1 if ct or image.modality == "mri" else 0, image.dimensions + 1)),
        window=_WINDOW.format(low=low, high=high) if ct else "",
    )
    shape = ", ".join(map(str, image.shape))
    body = _IMAGE if image.depth is None else _VOLUME
    return head + body.format(channels=image.channels, shape=shape, size=image.size, depth=image.depth, unit=unit)
