"""Which arm an encoder's training started from, and what that arm is called when a protocol trains it."""

from evaluation.inputs import Encoder, Inputs
from evaluation.protocols.table import PROTOCOLS

SUPERVISED = "supervised"
UNTRAINED = ("random", "pretrained-init")
"""Kinds of encoders that were not pretrained here."""


def base_of(inputs: Inputs, encoder: Encoder) -> str:
    """The arm that its training started from: as it says, else given starting weights if there are any, else random.

    An encoder that was not pretrained here is its own base.
    """
    if encoder.kind in UNTRAINED:
        return encoder.arm
    if encoder.base:
        return encoder.base
    untrained = {str(other.kind): other.arm for other in inputs.encoders if other.kind in UNTRAINED}
    return untrained.get("pretrained-init", untrained.get("random", ""))


def bases(inputs: Inputs) -> list[str]:
    """Arms that some other arm's training started from; where nothing was pretrained, all that there are."""
    trained = [encoder for encoder in inputs.encoders if encoder.kind not in UNTRAINED]
    return sorted({base_of(inputs, encoder) for encoder in trained or inputs.encoders} - {""})


def shown_as(inputs: Inputs, encoder: Encoder, name: str) -> str:
    """The encoder's name in the tables: what pretraining started from, trained on the labels alone, is "supervised"."""
    return supervised_arms(inputs).get(encoder.arm, encoder.arm) if PROTOCOLS[name].trains_encoder else encoder.arm


def supervised_arms(inputs: Inputs) -> dict[str, str]:
    """By the arm that it starts from, the name in the tables of supervised training without pretraining."""
    started_from = bases(inputs)
    return {arm: SUPERVISED if len(started_from) == 1 else f"{SUPERVISED}-{arm}" for arm in started_from}
