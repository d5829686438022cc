"""Tables of the report about the run: budgets, settings, and what is needed to do it again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report.cautions import study_settings
from evaluation.report.run_folder import RunFolder
from evaluation.report.tables.equal_budgets import equal_in, trained_arms
from evaluation.statistics.metric_values import arm_order
from foundation.wording import mebibytes

GPU_WATTS, CPU_WATTS = 300, 65
"""What a machine is assumed to draw while it computes; nothing was measured."""
_EXPECTED = (
    " With privacy by patient, who takes part in a step is drawn anew each time and written down nowhere: the private "
    "encoder's figure is the number that was to be expected."
)


def facts(folder: RunFolder) -> list[tuple[str, str]]:
    """Who ran what, when and where, in the order of the page; what is not on record is left out."""
    info = folder.info
    named = {
        "Commit": info.get("commit"),
        "Study hash": info.get("study_hash"),
        "Starting weights": info.get("starting_weights"),
        "Evaluated on": info.get("evaluated_on"),
        "Seed": info.get("seed"),
        "Started": info.get("started"),
        "Finished": info.get("finished"),
        "Versions": info.get("versions"),
        "Machine": info.get("machine"),
    }
    return [(name, described(value)) for name, value in named.items() if value not in (None, "", {})]


@dataclass(frozen=True)
class BudgetRow:
    """What an arm cost, as printed: folds, seeds, images, passes, optimiser steps, sequential steps, time."""

    title: str
    detail: str
    kind: str
    cells: tuple[str, ...]


def budget_rows(folder: RunFolder) -> list[BudgetRow]:
    """A row an arm of arms.json, in the report's order."""
    return [
        BudgetRow(
            arm.short,
            arm.detail,
            arm.kind,
            (
                _thousands(arm.folds),
                _thousands(arm.seeds),
                _thousands(arm.images),
                "–" if arm.passes is None else f"{arm.passes:.3g}",
                _thousands(arm.optimiser_steps),
                _thousands(arm.sequential_steps),
                duration(arm.seconds),
            ),
        )
        for arm in sorted(folder.arms, key=lambda arm: arm_order(folder, arm.name))
    ]


def _thousands(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def duration(seconds: float | None) -> str:
    """``48 s``, ``12 min`` or ``3.2 h``; a dash where it is not known."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def budget_statement(folder: RunFolder) -> str:
    """What was equal for the trained arms: images seen, or passes over their own; "" when fewer than two say."""
    arms = trained_arms(folder.arms)
    if len(arms) < 2:
        return ""
    images = _range([f"{arm.images:,}" for arm in sorted(arms, key=lambda arm: arm.images or 0)])
    passes = _range([f"{each:.3g}" for each in sorted(arm.passes or 0.0 for arm in arms)])
    drawn = _EXPECTED if folder.privacy.get("unit") == "patient" else ""
    local_only = any(arm.kind == "local-only" for arm in arms)
    match equal_in(arms):
        case "images":
            also = "; a local-only arm saw its own the more often" if local_only else ""
            return (
                f"Every pretrained encoder saw the same number of images over the whole study ({images}, repeats "
                f"counted){also}.{drawn}"
            )
        case "passes":
            also = f" A local-only arm has fewer images and so saw fewer: {images} in all." if local_only else ""
            return (
                f"Every pretrained encoder saw each of its images about equally often ({passes} times over the whole "
                f"study; only whole batches are counted).{also}{drawn}"
            )
    return (
        f"Budgets were not equal: the pretrained encoders saw {images} images. "
        f"A difference between them may come from that alone.{drawn}"
    )


def _range(ordered: Sequence[str]) -> str:
    """``30,208 to 30,240``, or the one value that there is."""
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def traffic_statement(folder: RunFolder) -> str:
    """What each site had to send and receive for the federated encoder; "" where the run does not say."""
    for arm in folder.leads:
        weights = sorted(folder.path.glob(f"arms/{arm}/fold-*/seed-*/global.safetensors"))
        count = _rounds(folder, arm)
        if weights and count:
            each = weights[0].stat().st_size
            return (
                f"A site received and sent {mebibytes(each)} MiB of weights in each of {count} rounds: "
                f"{mebibytes(each * count)} MiB either way, for one fold and seed, without what the network adds."
            )
    return ""


def _rounds(folder: RunFolder, arm: str) -> int:
    """The rounds of an arm that is finished; 0 where the run does not say. Sites of a private study tell no curve."""
    rounds = folder.curves.loc[folder.curves["arm"] == arm, "round"]
    if not rounds.empty:
        return int(rounds.max())
    return int(study_settings(folder)["rounds"]["count"]) if folder.privacy else 0


def energy_statement(folder: RunFolder) -> str:
    """A rough figure of the energy of each arm, with what is assumed for it; "" where no time was measured."""
    known = [(arm.short, arm.seconds) for arm in folder.arms if arm.seconds and not folder.gathered]
    if not known:
        return ""
    gpus = folder.info.get("machine", {}).get("gpus") or []
    watts = GPU_WATTS * len(gpus) or CPU_WATTS
    what = f"{GPU_WATTS} W for each of {len(gpus)} GPUs" if gpus else f"{CPU_WATTS} W for a machine without a GPU"
    said = ", ".join(f"{title} {_kilowatt_hours(seconds * watts / 3.6e6)}" for title, seconds in known)
    return f"Energy, roughly: {said}. This is time multiplied by an assumed {what}; nothing was measured."


def _kilowatt_hours(value: float) -> str:
    return f"{value:.2g} kWh" if value < 100 else f"{value:,.0f} kWh"


def settings(study: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The study's sections in one line each. ``simulation`` holds this machine's paths and is left to the full file."""
    hidden = {"simulation", "title", "name", "description"}
    shown = {key: value for key, value in study.items() if key not in hidden}
    return [(str(key).replace("_", " "), "none" if value is None else described(value)) for key, value in shown.items()]


def described(value: Any) -> str:
    """A nested value as words: ``mae; mask ratio 0.75``."""
    if isinstance(value, Mapping):
        name = [str(value["name"])] if "name" in value else []
        others = [(str(key).replace("_", " "), inner) for key, inner in value.items() if key != "name"]
        return "; ".join(name + [f"{key} {_inner(inner)}" for key, inner in others])
    return "" if value is None else _inner(value)


def _inner(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({described(value)})"
    if isinstance(value, list):
        return ", ".join(_inner(item) for item in value) or "none"
    if value is None:
        return "none"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
