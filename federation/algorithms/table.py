"""What is known of each algorithm without importing it: Flower's strategies take a second."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from foundation.configuration.section import Section

Setting = Literal["privacy by patient", "privacy by site", "secure sums"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)


@dataclass(frozen=True)
class AlgorithmFacts:
    """What an algorithm is; its class has every one of these as an attribute of the same name."""

    path: str
    """Module and class, imported by ``algorithm_type`` when it is first used."""
    summary: str
    paper: str
    missed: str
    """What happens to a site that missed rounds, beside that its local parts and moments are those it left."""
    fewest_replies: int = 1
    """Replies of sites that the server half needs."""
    refuses: Mapping[Setting, str] = field(default_factory=dict)
    """Settings that the algorithm does not go with, each with the reason; a study with both is refused at load."""


_SINGLE: dict[Setting, str] = {
    "privacy by site": "looks at single updates, and site-level privacy noises only their sum",
    "secure sums": "looks at single updates, and secure aggregation shows only their sum",
}
_GLOBAL = "starts from the global weights"
_MOMENTS = f"{_GLOBAL}; the server's moments went on without it"

ALGORITHMS: dict[str, AlgorithmFacts] = {
    "fedavg": AlgorithmFacts(
        path="federation.algorithms.fedavg.FedAvg",
        summary="average of the sites' weights, each counted by its images",
        paper="McMahan et al. 2017",
        missed=_GLOBAL,
    ),
    "fedprox": AlgorithmFacts(
        path="federation.algorithms.fedprox.FedProx",
        summary="FedAvg with a proximal term that keeps each site near the global weights",
        paper="Li et al. 2020",
        missed=_GLOBAL,
    ),
    "fedavgm": AlgorithmFacts(
        path="federation.algorithms.fedavgm.FedAvgM",
        summary="momentum at the server on the sites' averaged update",
        paper="Hsu et al. 2019",
        missed=_MOMENTS,
    ),
    "diloco": AlgorithmFacts(
        path="federation.algorithms.diloco.DiLoCo",
        summary="Nesterov momentum at the server after many AdamW steps with kept moments",
        paper="Douillard et al. 2023",
        missed=_MOMENTS,
    ),
    "ldawa": AlgorithmFacts(
        path="federation.algorithms.ldawa.LDAWA",
        summary="average by layer, each site counted by the cosine of its weights and the global ones",
        paper="Rehman et al. 2023",
        missed=_GLOBAL,
        refuses=_SINGLE,
    ),
    "fedema": AlgorithmFacts(
        path="federation.algorithms.fedema.FedEMA",
        summary="FedAvg whose sites mix their own weights in, the more the further they moved",
        paper="Zhuang et al. 2022; FedU: Zhuang et al. 2021",
        missed=f"{_GLOBAL} alone, its target too",
    ),
    "fedadam": AlgorithmFacts(
        path="federation.algorithms.flower_strategies.FedAdam",
        summary="Adam at the server on the sites' averaged update (Flower's strategy)",
        paper="Reddi et al. 2021",
        missed=_MOMENTS,
        refuses=_SINGLE,
    ),
    "fedmedian": AlgorithmFacts(
        path="federation.algorithms.flower_strategies.FedMedian",
        summary="median of the sites' weights, one number at a time (Flower's strategy)",
        paper="Yin et al. 2018",
        missed=_GLOBAL,
        fewest_replies=3,
        refuses=_SINGLE,
    ),
}


class AlgorithmConfig(Section):
    """What every algorithm's section has."""

    name: str
