"""What a study says about images."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from foundation.configuration.section import Section

Modality = Literal[
    "x-ray", "ultrasound", "histopathology", "ct", "mri", "fundus", "dermoscopy", "endoscopy", "microscopy"
]

Relation = Literal["patient", "study", "series", "neighbour", "placed", "dated"]
"""How a partner is related: any other image of the patient, study or series; the slice before or after in
the series; an image of the series at another position; another image of the patient taken on another day."""


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"{pair[0]} > {pair[1]}: give the smaller number first")
    return pair


Fraction = Annotated[float, Field(ge=0, le=1)]
AreaRange = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]],
    AfterValidator(_ascending),
]
RatioRange = Annotated[
    tuple[Annotated[float, Field(ge=0.1, le=10)], Annotated[float, Field(ge=0.1, le=10)]],
    AfterValidator(_ascending),
]
COLOUR_SETTINGS = ("saturation", "hue", "stain")


class AugmentConfig(Section):
    """How strongly views differ from their image. What is left out has the modality preset's value."""

    crop_scale: AreaRange | None = Field(
        default=None,
        description="Strong views: area of the random crop as a fraction of the image, [from, to].",
    )
    light_crop_scale: AreaRange | None = Field(
        default=None, description="Light views (masked methods): area of the random crop, [from, to]."
    )
    crop_ratio: RatioRange | None = Field(default=None, description="Width / height of the crop, [from, to].")
    horizontal_flip: Fraction | None = Field(default=None, description="Probability of a left-right flip.")
    vertical_flip: Fraction | None = Field(default=None, description="Probability of an up-down flip.")
    quarter_turns: Fraction | None = Field(
        default=None, description="Strong views: probability of a turn by 90, 180 or 270 degrees."
    )
    rotation_degrees: float | None = Field(
        default=None, ge=0, le=180, description="Strong views: largest rotation to either side, in degrees."
    )
    stain: float | None = Field(
        default=None, ge=0, le=0.5, description="Largest change of each stain (H, E, DAB); 3 channels only."
    )
    blur: float | None = Field(
        default=None, ge=0, le=0.05, description="Largest sigma of a Gaussian blur as a fraction of the side."
    )
    blur_probability: Fraction | None = Field(default=None, description="Probability of a blur.")
    bias_field: float | None = Field(
        default=None, ge=0, le=2, description="Largest coefficient of a cubic field in the log intensity."
    )
    speckle: float | None = Field(
        default=None, ge=0, le=1, description="Largest standard deviation of multiplicative noise."
    )
    noise: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Largest standard deviation of additive noise, image in [0, 1].",
    )
    noise_probability: Fraction | None = Field(
        default=None, description="Probability of noise, and independently of speckle."
    )
    gamma: float | None = Field(
        default=None, ge=0, le=2, description="Largest |log gamma|: intensities are raised to gamma."
    )
    brightness: Fraction | None = Field(default=None, description="Gain is drawn from 1 -+ this.")
    contrast: Fraction | None = Field(
        default=None, description="Factor on the distance from the image's mean, drawn from 1 -+ this."
    )
    saturation: Fraction | None = Field(
        default=None, description="Factor on the distance from grey, drawn from 1 -+ this; 3 channels only."
    )
    hue: float | None = Field(
        default=None, ge=0, le=0.5, description="Largest turn of the hue, in turns; 3 channels only."
    )
    jitter_probability: Fraction | None = Field(
        default=None, description="Probability of gamma, brightness, contrast, saturation and hue together."
    )
    cutout: Fraction | None = Field(
        default=None,
        description="Largest side of one square set to the image's mean, as a fraction of the side.",
    )
    anisotropy: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="Strong views: largest factor by which one axis is made coarser, from 1.5; 0: never.",
    )
    anisotropy_probability: Fraction | None = Field(default=None, description="Probability of a coarser axis.")
    motion: float | None = Field(
        default=None,
        ge=0,
        le=0.2,
        description="MR: largest shift by which the patient moves once during the scan, as a fraction of the side; "
        "turned by up to as much at the image's edge.",
    )
    ghosting: Fraction | None = Field(
        default=None, description="MR: largest share by which every second, fourth or sixth line of k-space is damped."
    )
    artefact_probability: Fraction | None = Field(
        default=None, description="Probability of motion, and independently of ghosts."
    )
    equalise: Fraction | None = Field(
        default=None, description="Largest share of the adaptively equalised image that is mixed in."
    )
    equalise_probability: Fraction | None = Field(default=None, description="Probability of equalisation.")
    shuffle: Fraction | None = Field(
        default=None,
        description="Largest side of one square whose pixels are put in random order, as a fraction of the side.",
    )


class ImageConfig(Section):
    """How an image becomes a tensor ``[channels, size, size]``, or ``[channels, depth, size, size]``, in [0, 1]."""

    modality: Modality = Field(description="Chooses the augmentation preset and the intensity normalisation.")
    size: int = Field(ge=16, le=1024, description="Side of the square image (or slice) the encoder sees, in pixels.")
    depth: int | None = Field(
        default=None,
        ge=8,
        le=512,
        description="Slices of a volume, from the feet to the head; left out, images are 2-D.",
    )
    channels: int = Field(ge=1, le=64, description="Channels of every image; an image of another count is refused.")
    window: tuple[float, float] | None = Field(
        default=None, description="CT only: the range of Hounsfield units that is kept; default: -1000 to 1000."
    )
    augment: AugmentConfig = Field(
        default=AugmentConfig(), description="Changes to the modality's augmentation preset."
    )

    @property
    def dimensions(self) -> int:
        """3 where images are volumes, else 2."""
        return 2 if self.depth is None else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: ``(C, S, S)``, or ``(C, D, S, S)`` of a volume."""
        sides = (self.size, self.size)
        return (self.channels, *sides) if self.depth is None else (self.channels, self.depth, *sides)

    def at_once(self, images: int) -> int:
        """How many volumes take the memory of ``images`` 2-D images of side 224, at least 1; 2-D: so many."""
        return images if self.depth is None else max(1, min(images, images * 224**2 // (self.depth * self.size**2)))

    @model_validator(mode="after")
    def _window_is_of_ct(self) -> Self:
        if self.window is None:
            return self
        if self.modality != "ct":
            raise ValueError(f"window {list(self.window)} is in Hounsfield units, but the modality is {self.modality}")
        if self.window[0] >= self.window[1]:
            raise ValueError(f"window {list(self.window)}: two numbers in Hounsfield units, the smaller first")
        return self

    @model_validator(mode="after")
    def _anisotropy_is_a_factor(self) -> Self:
        factor = self.augment.anisotropy
        if factor and factor < 1.5:
            raise ValueError(f"augment.anisotropy = {factor}: 0 for never, or a factor of 1.5 or more")
        return self

    @model_validator(mode="after")
    def _volumes_have_no_colour(self) -> Self:
        for name in COLOUR_SETTINGS:
            value = getattr(self.augment, name)
            if value and self.depth is not None:
                raise ValueError(
                    f"augment.{name} = {value} is a colour operation, but depth says volumes; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _colour_needs_three_channels(self) -> Self:
        for name in COLOUR_SETTINGS:
            value = getattr(self.augment, name)
            if value and self.channels != 3:
                raise ValueError(
                    f"augment.{name} = {value} is a colour operation, but channels = {self.channels}; "
                    f"leave it out, or give 3 channels"
                )
        return self
