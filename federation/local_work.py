"""How much a site does in a round: one rule that the site, the budget table and the equal-budget arms all use."""

from dataclasses import dataclass

from federation.training_config import TrainingConfig


@dataclass(frozen=True)
class LocalWork:
    """Optimiser steps of one round and the images each sees."""

    steps: int
    batch: int
    accumulate: int

    @property
    def images(self) -> int:
        """Images seen in the round, repeats counted."""
        return self.steps * self.batch * self.accumulate


def local_work(training: "TrainingConfig", images: int) -> LocalWork:
    """A round's work at a site of that many images.

    The batch is the study's, or all the site's images where it has fewer. ``epochs`` counts whole batches, at
    least one step.
    """
    batch = min(training.batch, images)
    if training.steps is not None:
        return LocalWork(training.steps, batch, training.accumulate)
    assert training.epochs is not None
    steps = int(training.epochs * images / (batch * training.accumulate) + 1e-9)
    return LocalWork(max(1, steps), batch, training.accumulate)


def steps_for_budget(training: "TrainingConfig", images: int, budget: int) -> int:
    """Steps a round for which a site of ``images`` sees ``budget`` images, to the nearest step and at least one."""
    batch = min(training.batch, images)
    return max(1, round(budget / (batch * training.accumulate)))
