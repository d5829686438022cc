"""Schedules over study progress p in [0, 1], so that a site of 12 images and one of 700 stay in step."""

import math


def warmup_cosine(progress: float, peak: float, *, warmup: float = 0.1) -> float:
    """Linear rise from 0 to ``peak`` over the share ``warmup`` of the study, then a half cosine to 0.

    Loshchilov and Hutter 2017 (SGDR), eq. 5, without restarts. ``progress`` outside [0, 1] is clamped.
    """
    p = min(max(progress, 0.0), 1.0)
    if p < warmup:
        return peak * p / warmup
    share = (p - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    return peak * 0.5 * (1.0 + math.cos(math.pi * share))


def cosine(progress: float, start: float, end: float) -> float:
    """Half cosine from ``start`` to ``end`` (BYOL's momentum: start .996, end 1; Grill et al. 2020, sec. 3.3)."""
    p = min(max(progress, 0.0), 1.0)
    return end - (end - start) * (math.cos(math.pi * p) + 1.0) / 2.0


def linear(progress: float, start: float, end: float) -> float:
    """Straight line from ``start`` to ``end`` (I-JEPA's momentum: Assran et al. 2023, appendix A)."""
    p = min(max(progress, 0.0), 1.0)
    return start + (end - start) * p


def momentum_for_batch(momentum: float, batch: int, reference_batch: int) -> float:
    """The momentum of a step of ``batch`` images that forgets per image as ``momentum`` at ``reference_batch``."""
    return float(momentum ** (batch / reference_batch))
