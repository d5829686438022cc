"""One measurement of our own: a method against no pretraining."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Cell:
    """AUROC of the pretrained encoder minus the random one's on the same held units, with its 95 % interval."""

    method: str
    dataset: str
    modality: str
    dimensions: Literal[2, 3]
    encoder: str
    protocol: str
    difference: float
    low: float
    high: float
    units: int

    @property
    def sign(self) -> Literal[-1, 0, 1]:
        """1 where the interval lies above 0, -1 where it lies below, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def line(self) -> str:
        """The measurement in words."""
        gain = f"{self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f})"
        return f"{self.dataset}, {self.encoder}, {self.protocol}: AUROC {gain} against random, {self.units} units"
