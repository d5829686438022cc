"""What a study says about pictures."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Modality = Literal[
    "x-ray", "ultrasound", "histopathology", "ct", "mri", "fundus", "dermoscopy", "endoscopy", "microscopy"
]


class Section(BaseModel):
    """A part of a study file: unknown keys are errors, values do not change after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    """How strongly views differ from their picture. What is left out has the modality preset's value."""

    crop_scale: AreaRange | None = Field(
        default=None,
        description="Strong views: area of the random crop as a fraction of the picture, [from, to].",
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
        description="Largest standard deviation of additive noise, picture in [0, 1].",
    )
    noise_probability: Fraction | None = Field(
        default=None, description="Probability of noise, and independently of speckle."
    )
    gamma: float | None = Field(
        default=None, ge=0, le=2, description="Largest |log gamma|: intensities are raised to gamma."
    )
    brightness: Fraction | None = Field(default=None, description="Gain is drawn from 1 -+ this.")
    contrast: Fraction | None = Field(
        default=None, description="Factor on the distance from the picture's mean, drawn from 1 -+ this."
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
        description="Largest side of one square set to the picture's mean, as a fraction of the side.",
    )


class ImageConfig(Section):
    """How a picture becomes a tensor ``[channels, size, size]`` with values in [0, 1]."""

    modality: Modality = Field(description="Chooses the augmentation preset and the intensity normalisation.")
    size: int = Field(ge=16, le=1024, description="Side of the square picture the encoder sees, in pixels.")
    channels: int = Field(ge=1, le=64, description="Channels of every picture; a picture of another count is refused.")
    augment: AugmentConfig = Field(
        default=AugmentConfig(), description="Changes to the modality's augmentation preset."
    )

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
