"""What an encoder is called by its role, where its run does not describe it: baselines and supervised training."""

from evaluation.statistics.results_schema import Role

_TITLES = {
    Role.FEDERATED: "Federated",
    Role.RANDOM: "Random initialisation: no pretraining",
    Role.CENTRALISED: "Centralised",
    Role.PRETRAINED_INIT: "Starting weights as they are: no pretraining",
}
_SUPERVISED = {
    Role.RANDOM: "Supervised from scratch: the same labels, no pretraining",
    Role.PRETRAINED_INIT: "Supervised from the starting weights: the same labels, no pretraining",
}
_BASELINES: dict[Role, dict[str, tuple[str, str]]] = {
    Role.PIXELS: {
        "classification": (
            "Raw pixels: logistic regression, nothing pretrained",
            "a logistic regression on raw pixels",
        ),
        "regression": ("Raw pixels: ridge regression, nothing pretrained", "a ridge regression on raw pixels"),
        "segmentation": (
            "Raw pixels: each by its grey value and place, nothing pretrained",
            "a logistic regression on the grey values and places of single pixels",
        ),
        "detection": (
            "Blobs: what is darker or brighter, nothing pretrained",
            "a logistic regression on blobs of dark and bright pixels",
        ),
    },
    Role.POSITION: {
        "classification": (
            "Position in the series: no image is looked at",
            "a logistic regression on an image’s position in its series",
        ),
        "regression": (
            "Position in the series: no image is looked at",
            "a ridge regression on an image’s position in its series",
        ),
    },
    Role.MAJORITY: {
        "classification": ("Majority class: no image is looked at", "always answering the majority class"),
        "multilabel": ("Shares: each finding by its frequency", "answering each finding by its frequency"),
        "regression": ("Mean: no image is looked at", "always answering the mean"),
        "segmentation": ("Nothing: no structure in any image", "finding no structure anywhere"),
        "detection": ("Nothing: no box in any image", "finding no box anywhere"),
    },
}
"""Title and wording of each baseline by what is asked of an image; the first where nothing else is said."""


def baseline_wording(role: Role, task: str) -> str:
    """The baseline within a sentence; ``task``: what is asked of an image."""
    return _BASELINES[role].get(task, _BASELINES[role]["classification"])[1]


def title_of(name: str, role: Role, started_from: str, task: str) -> str:
    """A readable title for an encoder that the run did not describe.

    started_from: the role of the arm that supervised training started from, or that arm's name. task: what is asked of
    an image.
    """
    if role in _BASELINES:
        return _BASELINES[role].get(task, _BASELINES[role]["classification"])[0]
    if role is Role.SUPERVISED:
        known = {str(base): title for base, title in _SUPERVISED.items()}
        return known.get(started_from, f"Supervised from {started_from}: the same labels, no pretraining")
    return _TITLES.get(role, name)
