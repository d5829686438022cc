"""What features look like without any label."""

import numpy as np

from evaluation.intervals import FloatArray
from evaluation.knn import unit_rows


def rankme(features: FloatArray) -> float:
    """Effective rank exp(-sum p log p), p = singular values / their sum + 1e-7 (RankMe, Garrido et al. 2023).

    features ``[N, D]``, neither centred nor scaled.
    """
    singular = np.linalg.svd(features, compute_uv=False)
    share = singular / max(float(singular.sum()), 1e-300) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def feature_spread(features: FloatArray) -> float:
    """Mean deviation of the unit features' coordinates times sqrt(D): near 1 if spread out, 0 if collapsed.

    Chen and He 2021 (SimSiam), fig. 2, where a collapsed encoder has 0 and isotropic features have 1/sqrt(D).
    """
    return float(unit_rows(features).std(0).mean() * np.sqrt(features.shape[1]))
