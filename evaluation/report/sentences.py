"""The sentences about a difference, one for each way in which it can fall."""

from collections.abc import Mapping
from enum import StrEnum


class Verdict(StrEnum):
    """How an encoder stands to another."""

    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "cannot say"
    NO_INTERVAL = "no interval"


# "baseline" is for what pretraining started from, random initialisation ({base}) or the weights that were given.
# "named" is for pages on several encoders, or on one that is not federated.
# {metric}, {own}: the federated encoder’s figure; {there}: the other's; {units}: patients or image clusters;
# {apart}: "0.05 above", "0.05 below"; {bracket}: " (95 % interval 0.02 to 0.09)"; {why}: why there is none;
# {baseline}: what is done with pixels, or position, alone.
_LEAD = "on unseen {units} the federated encoder’s {metric} is {own}, {apart} {base}"
SENTENCES: Mapping[str, Mapping[Verdict, str]] = {
    "baseline": {
        Verdict.BETTER: "Pretraining helped: " + _LEAD + "{bracket}.",
        Verdict.WORSE: "Pretraining made it worse: " + _LEAD + "{bracket}.",
        Verdict.UNCLEAR: "We cannot say whether pretraining helped: " + _LEAD + "{bracket}.",
        Verdict.NO_INTERVAL: "We cannot say whether pretraining helped: " + _LEAD + ", with {why}.",
    },
    "pixels": {
        Verdict.BETTER: "It does better than simple pixels: {baseline}, with no pretraining "
        "at all, reaches {there}; the encoder is {apart} that{bracket}.",
        Verdict.WORSE: "Simple pixels do better: {baseline}, with no pretraining at all, "
        "reaches {there}; the encoder is {apart} that{bracket}.",
        Verdict.UNCLEAR: "We cannot tell it from simple pixels: {baseline}, with no pretraining "
        "at all, reaches {there}; the encoder is {apart} that{bracket}.",
        Verdict.NO_INTERVAL: "We cannot tell it from simple pixels: {baseline}, with no pretraining "
        "at all, reaches {there}; the encoder is {apart} that, with {why}.",
    },
    "position": {
        Verdict.BETTER: "It does better than position alone: {baseline}, which sees no image, "
        "reaches {there}; the encoder is {apart} that{bracket}.",
        Verdict.WORSE: "Position alone does better: {baseline}, which sees no image, "
        "reaches {there}; the encoder is {apart} that{bracket}.",
        Verdict.UNCLEAR: "We cannot tell it from position alone: {baseline}, which sees no image, "
        "reaches {there}; the encoder is {apart} that{bracket}.",
        Verdict.NO_INTERVAL: "We cannot tell it from position alone: {baseline}, which sees no image, "
        "reaches {there}; the encoder is {apart} that, with {why}.",
    },
    "centralised": {
        Verdict.BETTER: "It did better than centralised training: {apart} {there}{bracket}.",
        Verdict.WORSE: "Centralised training did better: the federated encoder is {apart} {there}{bracket}.",
        Verdict.UNCLEAR: "We cannot tell it from centralised training: {apart} {there}{bracket}.",
        Verdict.NO_INTERVAL: "We cannot tell it from centralised training: {apart} {there}, with {why}.",
    },
    "named": {
        Verdict.BETTER: "{who} did better than {base}: {metric} {own}, {apart} {there}{bracket}.",
        Verdict.WORSE: "{who} did worse than {base}: {metric} {own}, {apart} {there}{bracket}.",
        Verdict.UNCLEAR: "We cannot tell {who} from {base}: {metric} {own}, {apart} {there}{bracket}.",
        Verdict.NO_INTERVAL: "We cannot tell {who} from {base}: {metric} {own}, {apart} {there}, with {why}.",
    },
    "other": {
        Verdict.BETTER: "It did better than {title}: {apart} {there}{bracket}.",
        Verdict.WORSE: "It did worse than {title}: {apart} {there}{bracket}.",
        Verdict.UNCLEAR: "We cannot tell it from {title}: {apart} {there}{bracket}.",
        Verdict.NO_INTERVAL: "We cannot tell it from {title}: {apart} {there}, with {why}.",
    },
}


NAMES = {
    "random": "random initialisation",
    "pretrained-init": "the weights it started from",
    "supervised": "supervised training from scratch with the same labels",
}
