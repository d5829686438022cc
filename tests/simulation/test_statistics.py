"""The exchange after the last round, end to end: whose statistics the encoder has, and that nothing else moved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from client.site_file import load_site_file
from federation.study import load_study
from foundation.errors import QuorumError
from foundation.files import read_jsonl
from foundation.tensor_files import load_tensors
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore
from server.checkpoint import latest_checkpoint
from simulation.sites.site_folders import Federation
from ssl_methods import build_method
from ssl_methods.encoders.statistics import estimate_statistics, plain_batches
from tests.simulation.secure_federation import IMAGES, Recorder, make, run

from ..tiers import slow

STATISTICS = ("running_mean", "running_var")


@pytest.fixture
def convolutional(raw_study: dict[str, Any]) -> dict[str, Any]:
    return raw_study | {
        "encoder": {"name": "test_efficientnet"},
        "method": {"name": "simsiam"},
        "rounds": {"count": 2, "attempts": 1, "deadline_minutes": 5},
    }


def own_statistics(federation: Federation, site: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What one site's images make of the encoder's statistics at these weights."""
    study = load_study(federation.folder / "study.yaml")
    file = load_site_file(federation.folder / "sites" / site / "site.yaml")
    store = TensorStore.build(Manifest.open(file.data), study.image, federation.folder / "store")
    method = build_method(study.method, study.encoder, study.image, study.seed)
    method.load_state_dict(weights, strict=False)
    estimate_statistics(method.encoder, plain_batches(len(store), store.batch, study.image, torch.device("cpu")))
    return {f"encoder.{name}": value for name, value in method.encoder.state_dict().items()}


def test_the_final_statistics_are_those_of_all_sites_and_no_weight_moves(
    convolutional: dict[str, Any], tmp_path: Path
) -> None:
    federation = make(tmp_path / "f", convolutional)
    final = run(federation)
    study = load_study(federation.folder / "study.yaml")
    last = latest_checkpoint(federation.folder / "checkpoints", study.training_hash())
    assert last is not None
    assert last.round == 3
    (trained,) = (tmp_path / "f" / "snapshots").glob("round-00002.safetensors")
    before = {f"encoder.{name}": value for name, value in load_tensors(trained)[0].items()}
    changed = {name for name in before if not torch.equal(before[name], final[name])}
    assert changed
    assert all(name.endswith(STATISTICS) for name in changed)
    own = {site: own_statistics(federation, site, final) for site in IMAGES}
    total = sum(IMAGES.values())
    for mean in (name for name in final if name.startswith("encoder.") and name.endswith("running_mean")):
        variance = mean.replace("running_mean", "running_var")
        middle = sum(IMAGES[site] / total * one[mean] for site, one in own.items())
        spread = sum(IMAGES[s] / total * (one[variance] + (one[mean] - middle) ** 2) for s, one in own.items())
        torch.testing.assert_close(final[mean], middle, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(final[variance], spread, rtol=1e-4, atol=1e-6)
    rows = read_jsonl(federation.folder / "metrics.jsonl")
    assert [row["reason"] for row in rows if row.get("event") == "statistics estimated"] == ["of the images of 4 sites"]
    assert max(row["round"] for row in rows if "event" not in row) == 2


def test_sums_under_masks_carry_the_statistics(convolutional: dict[str, Any], tmp_path: Path) -> None:
    plain = run(make(tmp_path / "plain", convolutional))
    masked = run(make(tmp_path / "masked", convolutional | {"secure_aggregation": {}}))
    for name in (name for name in plain if name.endswith("running_mean") and name.startswith("encoder.")):
        variance = plain[name.replace("running_mean", "running_var")]
        assert float(((plain[name] - masked[name]) / (variance + 1e-5).sqrt()).abs().max()) < 0.02, name
        off = masked[name.replace("running_mean", "running_var")] / variance.clamp(min=1e-6)
        assert float(off.median()) == pytest.approx(1.0, abs=0.02), name


@slow
def test_a_server_that_stops_before_the_statistics_goes_on_with_them(
    convolutional: dict[str, Any], tmp_path: Path
) -> None:
    whole = run(make(tmp_path / "whole", convolutional))
    stopped = make(tmp_path / "stopped", convolutional)

    def until_the_end(message: Any) -> Any:
        if message.metadata.group_id == "3":
            raise KeyboardInterrupt
        return None

    with pytest.raises((KeyboardInterrupt, QuorumError)):
        run(stopped, Recorder(before=until_the_end))
    again = run(stopped)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
