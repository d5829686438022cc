"""What is asked of each labelled image: classes, findings, numbers, masks or boxes, and the patients' roles."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evaluation.config import EvaluationConfig
from evaluation.statistics.intervals import IntArray
from evaluation.tasks.label_checks import no_test_images, unknown_classes
from evaluation.tasks.positions import relative_positions
from foundation.errors import DataError, nearest
from imaging.annotations.boxes import listed_boxes
from imaging.listing.splits import HELD, check_splits

MOST_CLASSES = 100
NO_FINDING = "none"
SEPARATOR = "|"
FOREGROUND = "foreground"
COLUMN_OF = {"segmentation": "mask", "detection": "boxes"}
"""The column that holds the target, where no study can choose it."""


@dataclass(frozen=True)
class Images:
    """Labelled images in the manifest's order.

    rows: ``[N]`` places in the manifest; image, patient, site: ``[N]`` text; classes: names of what is told apart
    (regression: none). codes: int64 ``[N]`` (classification), ``[N, K]`` of 0 and 1 (multilabel), else None; numbers:
    float64 ``[N]`` (regression), else None. Masks and boxes depend on the image's frame: ``Inputs.target`` has them.
    roles: for each fold ``[N]`` train, validation, test, left-out or "". position: ``[N]`` in its series, 0 to 1, NaN
    where an image has none, or None (``tasks.positions``).
    """

    rows: IntArray
    image: NDArray[np.str_]
    patient: NDArray[np.str_]
    site: NDArray[np.str_]
    classes: tuple[str, ...]
    roles: Mapping[int, NDArray[np.str_]]
    codes: IntArray | None = None
    numbers: NDArray[np.float64] | None = None
    position: NDArray[np.float64] | None = None

    @property
    def y(self) -> IntArray:
        """Class codes ``[N]`` of a classification."""
        if self.codes is None or self.codes.ndim != 1:
            raise ValueError("only images of a classification have one class each")
        return self.codes

    @property
    def label(self) -> NDArray[np.str_]:
        """``[N]`` what a figure may colour an image by: its class, its findings, its number; else ""."""
        if self.numbers is not None:
            return np.array([f"{number:g}" for number in self.numbers], dtype=np.str_)
        if self.codes is None:
            return np.full(len(self.rows), "", dtype=np.str_)
        if self.codes.ndim == 1:
            return np.array(self.classes, dtype=np.str_)[self.codes]
        names = np.array(self.classes)
        return np.array([SEPARATOR.join(names[row > 0]) or NO_FINDING for row in self.codes], dtype=np.str_)

    def where(self, fold: int, *roles: str) -> IntArray:
        """Places (in this object) of the images with one of these roles in the fold."""
        return np.flatnonzero(np.isin(self.roles[fold], roles)).astype(np.int64)

    def without_roles(self, fold: int, places: IntArray) -> "Images":
        """The same images, those at ``places`` without a role in the fold."""
        roles = self.roles[fold].copy()
        roles[places] = ""
        return replace(self, roles={**self.roles, fold: roles})

    def subset(self, keep: NDArray[np.bool_]) -> "Images":
        """The images with ``keep``."""
        return replace(
            self,
            rows=self.rows[keep],
            image=self.image[keep],
            patient=self.patient[keep],
            site=self.site[keep],
            roles={fold: roles[keep] for fold, roles in self.roles.items()},
            codes=None if self.codes is None else self.codes[keep],
            numbers=None if self.numbers is None else self.numbers[keep],
            position=None if self.position is None else self.position[keep],
        )


def label_images(table: pd.DataFrame, splits: pd.DataFrame, config: EvaluationConfig) -> Images:
    """Labelled images with their roles: the role is the patient's, from the split; unlabelled images stay out.

    DataError when labels or split cannot be evaluated; looks at no image, so that it can come before training.
    """
    check_splits(splits)
    labelled = labelled_rows(table, config)
    rows = np.flatnonzero(labelled).astype(np.int64)
    kept = table.iloc[rows]
    patients = kept["patient"].astype(str).to_numpy(dtype=np.str_)
    image = kept["image"].astype(str)
    if "slice" in kept:
        image = image + kept["slice"].map(lambda s: "" if pd.isna(s) else f"#{s}")
    site = kept["site"].fillna("").astype(str) if "site" in kept else pd.Series([""] * len(kept))
    classes, codes, numbers = _targets(kept, config)
    position = relative_positions(table)
    roles = patient_roles(splits)
    images = Images(
        rows=rows,
        image=image.to_numpy(dtype=np.str_),
        patient=patients,
        site=site.to_numpy(dtype=np.str_),
        classes=classes,
        roles={fold: np.array([role.get(p, "") for p in patients], np.str_) for fold, role in roles.items()},
        codes=codes,
        numbers=numbers,
        position=None if position is None else position[rows],
    )
    _check_roles(images, roles, config)
    if config.aggregate != "none":
        _check_patients_have_one_class(images, config)
    return images


def check_labels(table: pd.DataFrame, splits: pd.DataFrame, config: EvaluationConfig) -> None:
    """DataError when labels or split cannot be evaluated."""
    label_images(table, splits, config)


def target_column(config: EvaluationConfig) -> str:
    """The manifest's column that holds what is asked of an image."""
    return COLUMN_OF.get(config.kind, config.label)


def labelled_rows(table: pd.DataFrame, config: EvaluationConfig) -> NDArray[np.bool_]:
    """``[rows]``, whether a row says what is asked of its image; DataError where none does."""
    column = target_column(config)
    if column not in table:
        known = [str(name) for name in table]
        raise DataError(
            f"label {column!r} is no column of the manifest; it has: {', '.join(known)}" + nearest(column, known)
        )
    if config.kind == "segmentation" and config.empty_mask == "background":
        return np.ones(len(table), dtype=np.bool_)
    labelled = has_label(table[column])
    if not labelled.any():
        raise DataError(f"no image has a {column!r}; evaluation needs labelled images")
    return labelled


def has_label(labels: pd.Series) -> NDArray[np.bool_]:
    """``[N]``, False where the cell is empty or blank."""
    return (labels.notna() & (labels.astype(str).str.strip() != "")).to_numpy(dtype=np.bool_)


def _targets(
    kept: pd.DataFrame, config: EvaluationConfig
) -> tuple[tuple[str, ...], IntArray | None, NDArray[np.float64] | None]:
    """Classes, codes and numbers of labelled rows."""
    if config.kind == "segmentation":
        return config.classes or (FOREGROUND,), None, None
    if config.kind == "detection":
        return box_classes(kept["boxes"], config), None, None
    if config.kind == "regression":
        return (), None, _numbers(kept[config.label], config)
    text = _as_names(kept[config.label])
    if config.kind == "classification":
        classes = ordered_classes(text, config)
        code = {name: k for k, name in enumerate(classes)}
        return classes, np.array([code[name] for name in text], dtype=np.int64), None
    found = [[part.strip() for part in name.split(SEPARATOR) if part.strip()] for name in text]
    found = [[part for part in parts if part != NO_FINDING] for parts in found]
    names = {part for parts in found for part in parts}
    if config.classes:
        unknown_classes([part for parts in found for part in parts], config.classes, config.label)
    if not names:
        raise DataError(f"no image has a finding in {config.label!r}; each is {NO_FINDING!r}")
    classes = config.classes or tuple(sorted(names))
    return classes, np.array([[int(name in parts) for name in classes] for parts in found], dtype=np.int64), None


def box_classes(cells: pd.Series, config: EvaluationConfig) -> tuple[str, ...]:
    """The classes of boxes: as stated, else all labels that some box has, by letter."""
    listed = [listed_boxes(str(cell), f"row {row}")[1] for row, cell in cells.items()]
    labels = [label for own in listed for label in own]
    if config.classes:
        unknown_classes(labels, config.classes, "boxes")
        return config.classes
    if not labels:
        raise DataError("no image has a box; detection needs some, [[x0, y0, x1, y1, label], ...] in the column boxes")
    return tuple(sorted(set(labels)))


def _numbers(labels: pd.Series, config: EvaluationConfig) -> NDArray[np.float64]:
    numbers = pd.to_numeric(labels.astype(str), errors="coerce").to_numpy(np.float64)
    if not np.isfinite(numbers).all():
        bad = labels.astype(str).to_numpy()[~np.isfinite(numbers)]
        raise DataError(
            f"{config.label!r} has {len(bad)} values that are no numbers, {bad[0]!r} for one; a regression needs "
            "numbers, or an empty cell where none is known"
        )
    return numbers


def patient_roles(splits: pd.DataFrame) -> dict[int, dict[str, str]]:
    """Of every fold, the role of each of its patients."""
    return {
        int(str(fold)): dict(zip(part["patient"], part["role"], strict=True)) for fold, part in splits.groupby("fold")
    }


def _as_names(labels: pd.Series) -> list[str]:
    """Labels as text; numbers without a needless fraction (1.0 is "1")."""
    numbers = pd.to_numeric(labels.astype(str), errors="coerce")
    if numbers.notna().all():
        return [f"{number:g}" for number in numbers]
    return [str(label).strip() for label in labels]


def ordered_classes(labels: list[str], config: EvaluationConfig) -> tuple[str, ...]:
    """The classes in order (as stated; else numbers by size, others by letter), the positive one of two last."""
    names = sorted(set(labels), key=lambda name: (0, float(name), "") if _is_number(name) else (1, 0.0, name))
    if config.classes:
        unknown_classes(labels, config.classes, config.label)
        names = [name for name in config.classes if name in names]
    if len(names) < 2:
        raise DataError(f"all {len(labels)} labelled images have {config.label} {names[0]!r}; two classes are needed")
    if len(names) > MOST_CLASSES:
        raise DataError(
            f"{config.label!r} has {len(names)} different values; a classification has at most {MOST_CLASSES}: if they "
            "are measurements, set kind to regression"
        )
    if config.positive is not None:
        if len(names) > 2:
            raise DataError(f"positive {config.positive!r} does nothing with {len(names)} classes; leave it out")
        if config.positive not in names:
            raise DataError(f"positive class {config.positive!r} is no label; there are: {', '.join(names)}")
        names = [name for name in names if name != config.positive] + [config.positive]
    return tuple(names)


def _is_number(name: str) -> bool:
    try:
        return bool(np.isfinite(float(name)))
    except ValueError:
        return False


def _check_roles(images: Images, roles: Mapping[int, Mapping[str, str]], config: EvaluationConfig) -> None:
    column = target_column(config)
    for fold in images.roles:
        for role in ("train", "validation"):
            places = images.where(fold, role)
            if not len(places):
                raise DataError(f"fold {fold} has no labelled {role} image; give {role} patients a {column}")
            one_class = config.kind == "classification" and len(np.unique(images.y[places])) < 2
            if role == "train" and one_class:
                raise DataError(f"fold {fold}: training images have one {column} only; two classes are needed")
        if not len(images.where(fold, *HELD)):
            raise no_test_images(fold, column, roles[fold])


def _check_patients_have_one_class(images: Images, config: EvaluationConfig) -> None:
    pairs = pd.DataFrame({"patient": images.patient, "code": images.y}).drop_duplicates()
    mixed = pairs.loc[pairs["patient"].duplicated(), "patient"].unique()
    if len(mixed):
        raise DataError(
            f"aggregate {config.aggregate}: {len(mixed)} patients have images of several classes of "
            f"{config.label!r}, {mixed[0]!r} for one; the label has to be the patient's, or leave aggregate out"
        )
