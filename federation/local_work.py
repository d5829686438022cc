"""How much a site does in a round: one rule that the site, the budget table and the equal-budget arms all use."""

from dataclasses import dataclass

from federation.training_config import TrainingConfig


@dataclass(frozen=True)
class LocalWork:
    """Optimiser steps of one round and the pictures each sees."""

    steps: int
    batch: int
    accumulate: int

    @property
    def pictures(self) -> int:
        """Pictures seen in the round, repeats counted."""
        return self.steps * self.batch * self.accumulate


def local_work(training: "TrainingConfig", pictures: int) -> LocalWork:
    """A round's work at a site of that many pictures.

    The batch is the study's, or all the site's pictures where it has fewer. ``epochs`` counts whole batches, at
    least one step.
    """
    batch = min(training.batch, pictures)
    if training.steps is not None:
        return LocalWork(training.steps, batch, training.accumulate)
    assert training.epochs is not None
    steps = int(training.epochs * pictures / (batch * training.accumulate) + 1e-9)
    return LocalWork(max(1, steps), batch, training.accumulate)


def steps_for_budget(training: "TrainingConfig", pictures: int, budget: int) -> int:
    """Steps a round for which a site of ``pictures`` sees ``budget`` pictures, to the nearest step and at least one."""
    batch = min(training.batch, pictures)
    return max(1, round(budget / (batch * training.accumulate)))
