"""What an arm is, and what it is called, where its run says little of it."""

_KINDS = {
    "federated": ("federated", "fedavg", "fedprox", "fedadam", "fedmedian"),
    "random": ("random", "initialisation"),
    "alone": ("alone", "local", "single"),
    "pooled": ("pooled", "central"),
    "supervised": ("supervised", "scratch"),
    "natural": ("natural", "imagenet"),
    "pixels": ("pixel",),
    "majority": ("majority",),
    "pretrained": ("pretrained",),
}
_TITLES = {
    "federated": "Federated",
    "random": "Random initialisation: no pretraining",
    "pooled": "Pooled pictures",
    "supervised": "Supervised from scratch: the same labels, no pretraining",
    "natural": "Starting weights as they are: no pretraining",
}
_FLOORS: dict[str, dict[str, tuple[str, str]]] = {
    "pixels": {
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
    "majority": {
        "classification": ("Majority class: no picture is looked at", "always answering the majority class"),
        "multilabel": ("Shares: each finding by its frequency", "answering each finding by its frequency"),
        "regression": ("Mean: no picture is looked at", "always answering the mean"),
        "segmentation": ("Nothing: no structure in any picture", "finding no structure anywhere"),
        "detection": ("Nothing: no box in any picture", "finding no box anywhere"),
    },
}
"""Title and wording of each floor by what is asked of a picture; the first where nothing else is said."""


def arm_kind(name: str, stated: str = "") -> str:
    """One of federated, random, alone, pooled, supervised, natural, pixels, majority, pretrained; else ``other``.

    What the run states comes first, the arm's name second: a run may state a coarser word (``floor``, ``trained``).
    """
    for text in (stated.lower(), name.lower()):
        for kind, words in _KINDS.items():
            if any(word in text for word in words):
                return kind
    return "other"


_SUPERVISED_FROM_WEIGHTS = "Supervised from the starting weights: the same labels, no pretraining"


def floor_wording(kind: str, task: str) -> str:
    """The floor within a sentence; ``task``: what is asked of a picture."""
    return _FLOORS[kind].get(task, _FLOORS[kind]["classification"])[1]


def title_of(name: str, baseline: str = "random", task: str = "") -> str:
    """A readable title for an arm that the run did not describe.

    baseline: what all arms started from; task: what is asked of a picture.
    """
    kind = arm_kind(name)
    if kind in _FLOORS:
        return _FLOORS[kind].get(task, _FLOORS[kind]["classification"])[0]
    if kind == "supervised" and "-" in name:
        return f"Supervised from {name.partition('-')[2]}: the same labels, no pretraining"
    if kind == "supervised" and baseline == "natural":
        return _SUPERVISED_FROM_WEIGHTS
    if kind == "alone":
        site = next(
            (part for part in name.replace(":", "-").replace("_", "-").split("-") if arm_kind(part) != "alone"),
            "",
        )
        return f"{site} alone" if site else "One site alone"
    return _TITLES.get(kind, name)
