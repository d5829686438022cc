"""Which arm an encoder's training started from, and what that arm is called when a protocol trains it."""

from evaluation.inputs import Encoder, Inputs
from evaluation.protocols import PROTOCOLS

SUPERVISED = "supervised"
UNTRAINED = ("random", "natural")
"""Kinds of encoders that were not pretrained here."""


def base_of(inputs: Inputs, encoder: Encoder) -> str:
    """The arm that its training started from: as it says, else natural weights where there are any, else random ones.

    An encoder that was not pretrained here is its own base.
    """
    if encoder.kind in UNTRAINED:
        return encoder.arm
    if encoder.base:
        return encoder.base
    untrained = {other.kind: other.arm for other in inputs.encoders if other.kind in UNTRAINED}
    return untrained.get("natural", untrained.get("random", ""))


def bases(inputs: Inputs) -> list[str]:
    """Arms that some other arm's training started from; where nothing was pretrained, all that there are."""
    trained = [encoder for encoder in inputs.encoders if encoder.kind not in UNTRAINED]
    return sorted({base_of(inputs, encoder) for encoder in trained or inputs.encoders} - {""})


def shown_as(inputs: Inputs, encoder: Encoder, name: str) -> str:
    """The encoder's name in the tables: what pretraining started from, trained on the labels alone, is "supervised"."""
    started_from = bases(inputs)
    if encoder.arm not in started_from or not PROTOCOLS[name].trains_encoder:
        return encoder.arm
    return SUPERVISED if len(started_from) == 1 else f"{SUPERVISED}-{encoder.arm}"
