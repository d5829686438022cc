"""How many sites make a round."""

import math

from federation.algorithms import build_algorithm
from federation.study import Study


def needed_replies(study: Study, sites: int) -> int:
    """The fewest accepted updates for a round of that many sites: the study's quorum, and what its algorithm needs."""
    # 0.55 of 20 sites is 11, though 0.55 * 20 > 11 in floating point.
    quorum = math.ceil(study.rounds.quorum * sites - 1e-9)
    return max(1, quorum, build_algorithm(study.algorithm).fewest_replies)
