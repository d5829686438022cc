"""All federated algorithms, by the name a study uses. Adding one: a file here, an entry in table.py, a test."""

from typing import TYPE_CHECKING, Annotated

from federation.algorithms.table import ALGORITHMS, AlgorithmConfig
from foundation.configuration.by_name import ByName, imported
from foundation.errors import look_up

if TYPE_CHECKING:
    from federation.algorithms.algorithm import Algorithm


def algorithm_type(name: str) -> type["Algorithm"]:
    """The class of the algorithm ``name``, imported; StudyError where there is none."""
    found: type[Algorithm] = imported(look_up(ALGORITHMS, name, "algorithm").path)
    return found


AnyAlgorithmConfig = Annotated[AlgorithmConfig, ByName(lambda: ALGORITHMS, lambda name: algorithm_type(name).Config)]


def build_algorithm(config: AlgorithmConfig) -> "Algorithm":
    """The algorithm that a study's section names."""
    return algorithm_type(config.name)(config)


__all__ = ["ALGORITHMS", "AlgorithmConfig", "AnyAlgorithmConfig", "algorithm_type", "build_algorithm"]
