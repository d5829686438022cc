"""What is known about choosing a pretext task: every finding with its source and its grade.

Nothing stands here that its source does not say. ``docs/advisor.md`` shows the same table.
"""

from dataclasses import dataclass
from typing import Literal

Grade = Literal["direct comparison", "review", "single study", "our own sweep", "by construction"]

POINTS: dict[Grade, float] = {
    "direct comparison": 4.0,
    "review": 3.0,
    "single study": 2.0,
    "our own sweep": 1.0,
    "by construction": 1.0,
}
"""What a finding weighs in the ranking. The order is that of the evidence; the distances are a convention."""
EXTRAPOLATED = 0.5
"""Factor on a finding that is carried over to what it was not made for."""


@dataclass(frozen=True)
class Finding:
    """A source, what it compared, and what it says."""

    citation: str
    grade: Grade
    compared: str
    says: str


FINDINGS: dict[str, Finding] = {
    "tissue": Finding(
        "Pretext Matters 2026",
        "direct comparison",
        "pretext tasks on histopathology, validated by pathologists",
        "where the signal is spatially localised, joint embedding (DINO)",
    ),
    "ultrasound": Finding(
        "Pretext Matters 2026",
        "direct comparison",
        "pretext tasks on ultrasound, validated by radiologists",
        "for globally structured anatomy, I-JEPA",
    ),
    "whole picture": Finding(
        "Task-Aligned SSL review 2026",
        "review",
        "75 studies, by downstream task",
        "for classification, contrastive methods and joint embedding",
    ),
    "dense": Finding(
        "Task-Aligned SSL review 2026",
        "review",
        "75 studies, by downstream task",
        "for segmentation, detection and other dense tasks, masked or spatial prediction",
    ),
    "combined": Finding(
        "Huang et al. 2023",
        "review",
        "studies of medical image classification",
        "combined strategies tend to win, but the review notes publication bias",
    ),
    "few labels": Finding(
        "Huang et al. 2023",
        "review",
        "fine-tuning end to end with a frozen encoder, 11 comparisons",
        "with few labels any pretraining on pictures of the field helps; fine-tuning end to end was better in 8 of 11",
    ),
    "natural weights": Finding(
        "Azizi et al., in Huang et al. 2023",
        "review",
        "studies of medical image classification",
        "where natural-image weights are at hand, pretraining is continued from them",
    ),
    "positives": Finding(
        "Huang et al. 2023",
        "review",
        "studies of medical image classification",
        "pictures of one patient or series are positives of each other where the label is constant within them",
    ),
    "erased": Finding(
        "Huang et al. 2023, fig. 4",
        "review",
        "examples of crops and masks",
        "a crop or a mask can erase the lesion: crops stay at 0.3 of the picture or more unless the task is texture",
    ),
    "different sites": Finding(
        "Yan et al. 2023",
        "single study",
        "federated MAE with federated SimSiam, on equal and on strongly different sites",
        "masked modelling: what it loses where sites differ is less than what SimSiam loses",
    ),
    "averaging": Finding(
        "Yan et al. 2023",
        "single study",
        "federated MAE and BEiT",
        "plain averaging of encoder and decoder by size, one local epoch a round",
    ),
    "per-sample": Finding(
        "the method's own loss",
        "by construction",
        "whether one picture's gradient depends on another picture",
        "patient-level privacy needs that it does not; of these methods MAE and I-JEPA are the ones to try",
    ),
    "negatives": Finding(
        "the method's own loss",
        "by construction",
        "what a picture is told from",
        "pictures of one patient are not each other's negatives, so that few patients a site leave few of them",
    ),
    "cost": Finding(
        "the method's own loss",
        "by construction",
        "passes through the encoder for each picture",
        "more passes mean fewer pictures seen for the same computing",
    ),
    "own": Finding(
        "benchmarks/results/sweep.md, adrenal-3d.md",
        "our own sweep",
        "every method with no pretraining, simulated federations, one split, one seed",
        "a paired interval of the gain for each method",
    ),
    "own weights": Finding(
        "benchmarks/results/natural-weights.md",
        "our own sweep",
        "SimCLR continued from ImageNet weights with SimCLR from scratch, brain MRI, 12 patients, one seed",
        "with the same EfficientNet continuing was better; on the federation's patients a small ResNet from scratch "
        "was better still",
    ),
}

UNKNOWN = (
    "Which method is best in a federation: of these sources only Yan et al. 2023 and our own sweep trained in one, and "
    "what was found in one place is carried over to many.",
    "Whether the review's preferences hold for these pictures: the table has them by task only.",
    "Publication bias, which Huang et al. 2023 note: what was not printed is not counted.",
    "More than our own sweep can say: one split, one seed, 30 patients, 64 pixels, a twentieth of a usual budget, "
    "about twenty comparisons without correction.",
)
"""Whatever is asked."""
