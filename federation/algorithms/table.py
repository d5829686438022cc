"""What is known of each algorithm without importing it: Flower's strategies take a second."""

from dataclasses import dataclass

from foundation.configuration.section import Section


@dataclass(frozen=True)
class AlgorithmFacts:
    """What an algorithm is; its class has every one of these as an attribute of the same name."""

    path: str
    """Module and class, imported by ``algorithm_type`` when it is first used."""
    summary: str
    paper: str
    fewest_replies: int = 1
    """Replies of sites that the server half needs."""


ALGORITHMS: dict[str, AlgorithmFacts] = {
    "fedavg": AlgorithmFacts(
        path="federation.algorithms.fedavg.FedAvg",
        summary="average of the sites' weights, each counted by its images",
        paper="McMahan et al. 2017",
    ),
    "fedprox": AlgorithmFacts(
        path="federation.algorithms.fedprox.FedProx",
        summary="FedAvg with a proximal term that keeps each site near the global weights",
        paper="Li et al. 2020",
    ),
    "fedadam": AlgorithmFacts(
        path="federation.algorithms.flower_strategies.FedAdam",
        summary="Adam at the server on the sites' averaged update (Flower's strategy)",
        paper="Reddi et al. 2021",
    ),
    "fedmedian": AlgorithmFacts(
        path="federation.algorithms.flower_strategies.FedMedian",
        summary="median of the sites' weights, one number at a time (Flower's strategy)",
        paper="Yin et al. 2018",
        fewest_replies=3,
    ),
}


class AlgorithmConfig(Section):
    """What every algorithm's section has."""

    name: str
