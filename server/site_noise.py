"""Site-level differential privacy at a server that the sites trust: the mean of a round, with noise, and its ledger.

McMahan et al. 2018, Learning differentially private recurrent language models, with sites as units and all of them in
every round: each update is at most ``privacy.clip`` long (the site shortens it, the server refuses a longer one), so
that one site moves the sum by no more, and N(0, (noise x clip)^2) is added to the sum. Divided by the sites whose
updates were accepted, a number that is told anyway, that is the mean of the updates and noise of so much less. Every
site counts alike, as a weight by images would tell how many a site has.

What is protected is what goes out and what stays on the disk once a round is over: the noised weights. The updates
themselves are in the reply store until then, and in this process; no figure is made of them, and their mean is never
written.
"""

from pathlib import Path

from torch import Tensor

from federation.algorithms.algorithm import Weights, is_parameter
from federation.privacy import noise
from federation.privacy.config import SitePrivacyConfig
from federation.privacy.ledger import Ledger
from federation.privacy.plan import plan_of
from federation.study import Study
from ssl_methods import build_method

LEDGER_NAME = "privacy.jsonl"
TOLERANCE = 1e-4
"""An update may be longer than ``clip`` by this share of it, as sites round to float32. The noise reckons with it."""


def site_noise(study: Study, ledger: Path) -> "SiteNoise | None":
    """The noise of a study whose server adds it; None for all others."""
    if not isinstance(study.privacy, SitePrivacyConfig) or study.secure_aggregation is not None:
        return None
    return SiteNoise(study, study.privacy, ledger)


class SiteNoise:
    """Adds a study's noise to its rounds' means, each charged in the ledger at ``ledger`` before any noise is drawn."""

    def __init__(self, study: Study, config: SitePrivacyConfig, ledger: Path) -> None:
        plan = plan_of(study)
        assert plan is not None
        self._hash, self._plan = study.training_hash(), plan
        self._ledger = Ledger(ledger)
        self._fixed = build_method(study.method, study.encoder, study.image, study.seed).untrained()
        self._deviation = plan.noise * config.clip * (1 + TOLERANCE)

    def noised(self, mean: Weights, before: Weights, sites: int, round_: int) -> Weights:
        """The mean weights of ``sites`` sites with noise on all that is trained; all else as it was sent (``before``).

        A server that is killed after this and before its checkpoint comes here again with the updates in its reply
        store, or with others. It must not add the noise it drew then, which is not stored, so that fresh noise is
        drawn. Only one of the two results is sent out. The other may have reached the disk (a snapshot, a checkpoint
        that was not renamed yet), where the two together would tell more than one, so that each drawing of noise is
        charged.
        """
        self._ledger.charge(self._hash, round_, self._plan.per_round, None, unit="site")
        deviation = self._deviation / sites
        return {
            name: noise.noised(v, deviation).to(v.dtype) if self._is_trained(name, v) else before[name]
            for name, v in mean.items()
        }

    def _is_trained(self, name: str, value: Tensor) -> bool:
        """False for statistics, counters and what no site trains (fixed positions, frozen blocks): noise would harm."""
        return is_parameter(name, value) and name not in self._fixed
