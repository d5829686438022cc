"""Which patients of a site are not pretrained on, because figures will be computed on them after the last round."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.statistics.intervals import IntArray
from evaluation.tasks.targets import has_label
from federation.federated_evaluation_config import FederatedEvaluationConfig
from federation.study import Study
from foundation.errors import DataError, RunError, nearest
from foundation.vault import Vault
from imaging.listing.manifest import Manifest
from imaging.listing.splits import ROLES, SplitConfig, draw_splits

ROLE, TRAIN, TEST = "role", "train", "test"
NO_CLASS = -1
_NAME = "held-out.json"


@dataclass(frozen=True)
class HeldOut:
    """Roles of the patients that are not trained on, by patient: "test", or another of a manifest's own."""

    roles: Mapping[str, str]

    def pretrained(self, manifest: Manifest) -> Manifest:
        """The images that may be trained on."""
        return manifest.where(~manifest.table["patient"].isin(list(self.roles)).to_numpy(dtype=bool))

    def tested(self, manifest: Manifest) -> Manifest:
        """The images of test patients."""
        tested = [patient for patient, role in self.roles.items() if role == TEST]
        return manifest.where(manifest.table["patient"].isin(tested).to_numpy(dtype=bool))


def held_out(manifest: Manifest, study: Study, site: str) -> HeldOut:
    """Those that the manifest's column ``role`` says; without one, drawn of this site's labelled patients.

    The draw depends on the study's seed, the site's name and its labelled patients (imaging/listing/splits.py).
    Nobody is held out where the study has no federated evaluation. DataError for a role that there is not, or a
    patient of two.
    """
    config = study.federated_evaluation
    if config is None:
        return HeldOut({})
    table = manifest.table
    if ROLE in table:
        return HeldOut(_stated(table))
    if config.label not in table:
        return HeldOut({})
    labelled = manifest.where(has_label(table[config.label]))
    if not len(labelled):
        return HeldOut({})
    stratified = labelled.table.assign(site=site, label=labelled.table[config.label])
    splits = SplitConfig(test_share=config.test_share, validation_share=0.0)
    drawn = draw_splits(Manifest(stratified, labelled.root, labelled.unit), splits, study.seed)
    return HeldOut({str(patient): TEST for patient in drawn.loc[drawn["role"] == TEST, "patient"]})


def _stated(table: pd.DataFrame) -> dict[str, str]:
    roles = table[ROLE].fillna(TRAIN).astype(str)
    unknown = sorted(set(roles) - set(ROLES))
    if unknown:
        known = ", ".join(ROLES)
        raise DataError(f"column {ROLE!r} has {unknown[0]!r}; there are: {known}{nearest(unknown[0], ROLES)}")
    of_patient = roles.groupby(table["patient"]).nunique()
    if (of_patient > 1).any():
        raise DataError(f"column {ROLE!r} gives {(of_patient > 1).sum()} patients two roles; a patient has one")
    return {str(p): role for p, role in zip(table["patient"], roles, strict=True) if role != TRAIN}


def kept_held_out(manifest: Manifest, study: Study, site: str, folder: Path, vault: Vault) -> HeldOut:
    """``held_out`` as it was first, whatever became of the manifest since: kept in ``folder``, the study's state.

    A patient who came later is trained on. RunError when the file is damaged.
    """
    if study.federated_evaluation is None:
        return HeldOut({})
    path = folder / _NAME
    if path.exists():
        try:
            return HeldOut(json.loads(vault.read_bytes(path)))
        except ValueError as error:
            raise RunError(
                f"{path}: is damaged; put back a copy: another draw would test patients trained on"
            ) from error
    found = held_out(manifest, study, site)
    vault.write_bytes(path, json.dumps(dict(found.roles)).encode())
    return found


def codes_of(table: pd.DataFrame, config: FederatedEvaluationConfig) -> IntArray:
    """``[N]`` the class of each row as a place in ``config.classes``, ``NO_CLASS`` where it has none.

    DataError for a label that is none of the study's classes.
    """
    if config.label not in table:
        return np.full(len(table), NO_CLASS, dtype=np.int64)
    known = has_label(table[config.label])
    names = _names(table[config.label][known])
    unknown = sorted(set(names) - set(config.classes))
    if unknown:
        raise DataError(
            f"column {config.label!r} has the label {unknown[0]!r}, and the study's classes are "
            f"{', '.join(config.classes)}: correct it, or empty the cell{nearest(unknown[0], config.classes)}"
        )
    codes = np.full(len(table), NO_CLASS, dtype=np.int64)
    codes[known] = [config.classes.index(name) for name in names]
    return codes


def _names(labels: pd.Series) -> list[str]:
    """Labels as text; numbers without a needless fraction (1.0 is "1"), which gaps in a column would give them."""
    numbers = pd.to_numeric(labels.astype(str), errors="coerce")
    if len(numbers) and numbers.notna().all():
        return [f"{number:g}" for number in numbers]
    return [str(label).strip() for label in labels]
