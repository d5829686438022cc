"""Everything about the attacks that could be chosen, the same for all runs; the control's size: docs/privacy.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttackSettings:
    """What ``attacks.json`` says was done; other values are for tests only, so that no figure can be picked.

    views: of an image, whose scores are averaged. patients, images: most patients on each side, and most images of
    each. control_*: of the overfitted model: patients who train it with one image each (as many are kept out), steps,
    those of a loss that couples images (it overfits sooner), AdamW's highest rate. shadow_rounds: most rounds of a
    shadow. targets: steps that are inverted; crowd: images among which the true one has to be found; restarts, steps,
    rate, smooth: of the search for an image. site_patients: most patients of a site whose site is guessed.
    """

    seed: int = 0
    views: int = 16
    patients: int = 200
    images: int = 4
    control_patients: int = 12
    control_steps: int = 2000
    coupled_control_steps: int = 500
    control_rate: float = 4e-3
    shadow_rounds: int = 8
    targets: int = 6
    crowd: int = 20
    restarts: int = 2
    steps: int = 150
    rate: float = 0.1
    smooth: float = 1e-3
    site_patients: int = 16
