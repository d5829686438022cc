"""What is known about choosing a pretext task: ``evidence.yaml``, and our own measurements in ``sweep.csv``."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from advisor.setting import Setting

SWEEP = Path(__file__).with_name("sweep.csv")
Grade = Literal["direct comparison", "review", "single study", "our own sweep", "by construction"]
WEIGHTS: dict[Grade, float] = {
    "direct comparison": 4.0,
    "review": 3.0,
    "single study": 2.0,
    "our own sweep": 1.0,
    "by construction": 1.0,
}
"""The order is that of the evidence; the distances are a convention."""


class _Fixed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Conditional(_Fixed):
    """What holds in some settings. ``when``: for each named attribute of the setting the values it may have."""

    when: dict[str, tuple[bool | int | str, ...]] = {}

    def holds(self, setting: "Setting") -> bool:
        """Whether all conditions are met."""
        return all(getattr(setting, name) in values for name, values in self.when.items())


class Note(_Conditional):
    """One sentence."""

    says: str


class Row(_Conditional):
    """The methods on which a finding bears, for or against, and the steps by which it is carried over to them."""

    methods: frozenset[str]
    sign: Literal[1, -1] = 1
    carried: tuple[str, ...] = ()


class Finding(Note):
    """A source, what it compared, and what it says. Without rows it is advice whatever the method."""

    citation: str
    grade: Grade
    compared: str
    rows: tuple[Row, ...] = ()


class Cell(_Fixed):
    """Our measurement: AUROC of the pretrained encoder minus the random one's on the same units, with 95 % interval."""

    method: str
    dataset: str
    modality: str
    dimensions: int
    encoder: str
    protocol: str
    difference: float
    low: float
    high: float
    units: int

    @property
    def sign(self) -> int:
        """1 where the interval lies above 0, -1 where it lies below, else 0."""
        return (self.low > 0) - (self.high < 0)

    def line(self) -> str:
        """The measurement in words."""
        gain = f"{self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f})"
        return f"{self.dataset}, {self.encoder}, {self.protocol}: AUROC {gain} against random, {self.units} units"


DATA: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("evidence.yaml").read_text(encoding="utf-8"))
FINDINGS = {name: Finding.model_validate(each) for name, each in DATA["findings"].items()}
NOTES = tuple(Note.model_validate(each) for each in DATA["notes"])
UNKNOWN = tuple(Note.model_validate(each) for each in DATA["unknown"])
with SWEEP.open(newline="", encoding="utf-8") as _file:
    CELLS = tuple(Cell.model_validate(row) for row in csv.DictReader(_file))
