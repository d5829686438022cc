"""What views may differ in, by modality: what a second examination would change, never the finding."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from imaging.config import COLOUR_SETTINGS, ImageConfig, Modality

Standardisation = Literal["image", "channel", "fixed"]


@dataclass(frozen=True)
class Preset:
    """One modality's values; names, units and ranges are those of ``AugmentConfig``. Default: operation off.

    standardise: ``image`` = zero mean and unit deviation of each image, ``channel`` = of each of its
    channels, ``fixed`` = mean .5, deviation .25 for all images.
    outside: what a rotated crop sees beyond the image's edge: black, or the image reflected.
    """

    standardise: Standardisation
    outside: Literal["zeros", "reflection"]
    crop_scale: tuple[float, float]
    light_crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (0.9, 1 / 0.9)
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    quarter_turns: float = 0.0
    rotation_degrees: float = 0.0
    stain: float = 0.0
    blur: float = 0.0
    blur_probability: float = 0.5
    bias_field: float = 0.0
    speckle: float = 0.0
    noise: float = 0.0
    noise_probability: float = 0.33
    gamma: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_probability: float = 0.8
    cutout: float = 0.0
    anisotropy: float = 0.0
    anisotropy_probability: float = 0.25
    motion: float = 0.0
    ghosting: float = 0.0
    artefact_probability: float = 0.15
    equalise: float = 0.0
    equalise_probability: float = 0.2
    shuffle: float = 0.0


# "Published" below: values of the self-supervised literature on that modality. The others are ours, from
# looking at sheets of views of real images.
#
# Crops keep at least .3 of the image where a finding can be lost with the part cut off (Huang et al. 2023,
# fig. 4); in textures (tissue, cells) the finding is everywhere and crops go down to .2.
# Proportions are findings in anatomy (heart to chest, ventricle to brain), so crops are nearly square there;
# 3/4 to 4/3 (Szegedy et al. 2015) is for textures only.
#
# Images whose grey level has no unit, or whose window differs between sites, are standardised one by one.
# Where colour is the finding (stain, lesion, mucosa) that would erase it: mean and deviation are fixed.
TEXTURE_RATIO = (0.75, 4 / 3)

PRESETS: dict[Modality, Preset] = {
    "x-ray": Preset(  # published: flip, +-10 degrees, crop .3 to .9, brightness and contrast .4 (of .4 to .7)
        standardise="image",  # detectors and post-processing differ in gain and offset
        outside="zeros",  # collimated border
        crop_scale=(0.3, 0.9),
        horizontal_flip=0.5,
        rotation_degrees=10,
        blur=0.005,  # focal spot and patient motion, about 1 pixel at 224
        noise=0.02,  # quantum noise at low dose
        brightness=0.4,
        contrast=0.4,
    ),
    "ultrasound": Preset(
        standardise="image",  # gain is set by hand
        outside="zeros",
        crop_scale=(0.45, 1.0),  # published depth zoom 1 to 1.5: 1 / 1.5^2 of the area
        horizontal_flip=0.5,  # probe turned round; never up-down: a shadow lies below its cause
        rotation_degrees=5,  # probe tilt; more shows a skin line that no probe can show
        blur=0.005,
        speckle=0.15,  # published with p .33; .3 hid lesions of 10 pixels on our sheets
        noise=0.04,
        gamma=0.2,  # dynamic range setting
        brightness=0.3,  # published .5; that burnt out whole images on our sheets
        contrast=0.3,
        equalise=0.6,  # published: CLAHE; the scanner's own speckle and edge filters differ as much
    ),
    "histopathology": Preset(  # published: both flips, quarter turns, jitter .4/.4/.2/.1 with p .8
        standardise="fixed",
        outside="reflection",
        crop_scale=(0.2, 1.0),
        crop_ratio=TEXTURE_RATIO,
        horizontal_flip=0.5,
        vertical_flip=0.5,
        quarter_turns=0.75,  # every direction equally often
        stain=0.05,  # published, light (strong: .2)
        blur=0.005,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.05,  # published .1; on top of the stain jitter that gave green glass
    ),
    "ct": Preset(
        standardise="image",  # the study's window decides how much of [0, 1] is used
        outside="zeros",  # air
        crop_scale=(0.4, 1.0),
        rotation_degrees=10,  # no flip: liver and heart have a side
        blur=0.005,  # reconstruction kernel
        noise=0.03,  # dose
        brightness=0.1,  # small, as Hounsfield units are calibrated
        contrast=0.1,
        cutout=0.25,  # published: coarse dropout
        shuffle=0.15,  # published: densities stay and their order goes, so that the surroundings have to tell
    ),
    "mri": Preset(
        standardise="channel",  # each sequence has its own arbitrary unit; published: z-score of each image
        outside="zeros",  # air
        crop_scale=(0.4, 1.0),
        horizontal_flip=0.5,  # the brain is nearly symmetric; set 0 where the side is the label
        rotation_degrees=10,  # published
        blur=0.008,  # low-resolution sequences
        bias_field=0.5,  # published, order 3
        noise=0.04,
        gamma=0.3,  # published; no contrast: it would lift the air to grey
        anisotropy=5.0,  # published: slices 1.5 to 5 times as thick as pixels are wide; less within a slice, see below
        motion=0.04,  # published: 10 mm, of a field of 240, and 10 degrees; here up to 4.6, as both are one setting
        ghosting=0.4,  # published without a strength: a ghost of a fifth at most is fainter than a lesion on our sheets
    ),
    "fundus": Preset(  # published: crop .2 to 1 (.3 here, see above), flips, any rotation, mild colour
        standardise="fixed",
        outside="zeros",  # the field stop is black
        crop_scale=(0.3, 1.0),
        horizontal_flip=0.5,
        vertical_flip=0.5,
        rotation_degrees=180,
        blur=0.004,  # vessels are 1 or 2 pixels wide
        brightness=0.2,
        contrast=0.2,
        saturation=0.1,
        hue=0.02,
    ),
    "dermoscopy": Preset(  # published: as fundus
        standardise="fixed",
        outside="reflection",  # skin goes on
        crop_scale=(0.3, 1.0),
        horizontal_flip=0.5,
        vertical_flip=0.5,
        rotation_degrees=180,
        blur=0.004,
        brightness=0.2,
        contrast=0.2,
        saturation=0.1,
        hue=0.02,
    ),
    "endoscopy": Preset(  # no published set found: as dermoscopy, with stronger light and motion
        standardise="fixed",
        outside="zeros",  # the frame is black
        crop_scale=(0.3, 1.0),
        horizontal_flip=0.5,
        vertical_flip=0.5,
        rotation_degrees=180,  # the endoscope turns about its axis
        blur=0.008,
        brightness=0.3,  # distance to the lamp
        contrast=0.3,
        saturation=0.2,
        hue=0.02,
    ),
    "microscopy": Preset(  # no published set found: the geometry of histopathology, the noise of a camera
        standardise="fixed",  # a z-score would turn an empty field of view into noise
        outside="reflection",
        crop_scale=(0.2, 1.0),
        crop_ratio=TEXTURE_RATIO,
        horizontal_flip=0.5,
        vertical_flip=0.5,
        quarter_turns=0.75,
        blur=0.008,  # focus
        noise=0.03,
        gamma=0.3,
        brightness=0.3,
        contrast=0.3,
        saturation=0.1,
        hue=0.02,
    ),
}
"""Of the published sets the change of probe shape (ultrasound) is left out: an examination has its probe, linear for
a breast, convex for an abdomen, so that no second one would show the other shape; and the warp makes a straight
margin round and a lesion wider than tall, which are signs that readers go by."""
IN_PLANE = 2.5
"""Largest anisotropy of a preset for 2-D images: thick slices are seen in volumes only; within a slice the
direction of phase encoding is rarely sampled more coarsely than this."""


def resolve(image: ImageConfig) -> Preset:
    """The preset of the study's modality with the study's own values in it.

    A preset's colour operations are left out where images do not have 3 channels: there is no colour then. Volumes
    have none either. Of 2-D images a preset's anisotropy is at most ``IN_PLANE``.
    """
    changes: dict[str, Any] = image.augment.model_dump(exclude_none=True)
    if image.channels != 3 or image.dimensions == 3:
        changes |= dict.fromkeys(COLOUR_SETTINGS, 0.0)
    preset = PRESETS[image.modality]
    if image.dimensions == 2:
        preset = replace(preset, anisotropy=min(preset.anisotropy, IN_PLANE))
    return replace(preset, **changes)
