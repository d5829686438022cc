"""The report of a run: one HTML file that opens from disk; the answer first, then how, then what not to conclude."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from evaluation import result_tables, run_tables, site_tables
from evaluation.answers import Contrast, answer, contrasts, outside_sentence, worth_telling
from evaluation.cautions import cautions, demonstration_text, elsewhere_text, left_out_sites, study_settings
from evaluation.feature_map import feature_panels
from evaluation.figures import (
    LESS_IS_BETTER,
    Question,
    arm_figures,
    figure_of,
    fraction_title,
    main_question,
    metric_title,
    of_protocol,
    protocol_title,
)
from evaluation.forest import Forest, ForestItem, forest
from evaluation.plots import Curve, Panel, efficiency_panels, learning_panels
from evaluation.run_folder import OVERALL, RunFolder, read_run
from foundation.files import write_text

REPORT_NAME = "report.html"
_TOLD_FIRST = ("pixels", "alone")
"""Kinds that the answer speaks of, beside what pretraining started from."""
_CHANCE = {"auroc": 0.5, "balanced_accuracy": 0.5}


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder from its records, and return its path.

    Needs ``results.csv``; what else is missing is named in the report. RunError when results.csv is missing or damaged.
    """
    folder = read_run(run)
    page = run / REPORT_NAME
    # No line breaks between a number and its per cent sign.
    write_text(page, _template().render(page_values(folder)).replace("95 %", "95\u00a0%"))
    return page


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(REPORT_NAME)


def page_values(folder: RunFolder) -> dict[str, Any]:
    """Everything that the template prints, by name."""
    question = main_question(folder)
    found = contrasts(folder, question)
    return {
        "folder": folder,
        "info": folder.info,
        "title": folder.info.get("title") or folder.info.get("name") or folder.path.resolve().name,
        "datasets": ", ".join(sorted(set(folder.results["dataset"]) - {""})),
        "question": question,
        "metric": metric_title(question.metric),
        "protocol": protocol_title(question.protocol),
        "labels": all_labels(question),
        "answer": answer(found, folder, question),
        "outside": [line for site in left_out_sites(folder) if (line := outside_sentence(folder, question, site))],
        "sentences": [
            item.sentence for item in worth_telling(found) if item.kind not in (folder.baseline, *_TOLD_FIRST)
        ],
        "demonstration": demonstration_text(folder),
        "elsewhere": elsewhere_text(folder),
        **_figures(folder, question, found),
        **_how(folder),
        "cautions": cautions(folder, question, found),
        "result_rows": result_tables.result_rows(folder),
    }


def _figures(folder: RunFolder, question: Question, found: list[Contrast]) -> dict[str, Any]:
    columns = site_tables.site_columns(folder, question)
    return {
        "arms_forest": arms_forest(folder, question),
        "difference_forest": difference_forest(found),
        "figure_one": difference_caption(folder, question, found),
        "figure_two": arms_caption(folder, question),
        "skipped_fractions": result_tables.skipped_fractions(folder, question),
        "site_columns": columns,
        "site_rows": site_tables.site_rows(folder, question, columns),
        "efficiency": efficiency(folder, question),
        "features": feature_panels(folder),
        "diagnostics": result_tables.diagnostic_rows(folder),
        "seed_spread": result_tables.seed_spread(folder, question),
        "learning": learning(folder),
    }


def _how(folder: RunFolder) -> dict[str, Any]:
    roles, rows = site_tables.split_table(folder)
    return {
        "roles": roles,
        "split_rows": rows,
        "other_skipped": site_tables.skipped_elsewhere(folder, rows),
        "folds": int(folder.splits["fold"].nunique()),
        "budget_statement": run_tables.budget_statement(folder),
        "settings": run_tables.settings(study_settings(folder)),
        "budget_rows": run_tables.budget_rows(folder),
        "facts": run_tables.facts(folder),
    }


def all_labels(question: Question) -> str:
    """``all training labels``, or which of them."""
    title = fraction_title(question.fraction)
    return "all training labels" if title == "100 %" else f"{title} of the training labels"


def arms_caption(folder: RunFolder, question: Question) -> str:
    """What the forest plot of arms shows."""
    figures = arm_figures(folder, question).values()
    counts = {figure.n for figure in figures if figure.n is not None}
    units = f" ({'–'.join(str(n) for n in sorted({min(counts), max(counts)}))} {folder.unit})" if counts else ""
    seeds = " Small marks: single training seeds." if any(figure.seeds for figure in figures) else ""
    floor = (
        " Chance is 0.50; the majority class is there by definition and is not drawn."
        if (question.metric.lower() == "auroc")
        else ""
    )
    return (
        f"{metric_title(question.metric)} of each encoder on unseen {folder.unit}{units}: "
        f"{protocol_title(question.protocol)}, {all_labels(question)}. Lines are 95 % "
        f"intervals over {folder.unit}; a hollow point has none.{seeds}{floor}"
    )


def difference_caption(folder: RunFolder, question: Question, found: list[Contrast]) -> str:
    """What the forest plot of differences shows."""
    side = "right" if question.metric.lower() not in LESS_IS_BETTER else "left"
    seeds = " Small marks: single training seeds." if any(item.figure.seeds for item in found) else ""
    return (
        f"Difference in {metric_title(question.metric)}, federated minus the other, on the same {folder.unit}. To the "
        f"{side} of the dotted line the federated encoder is ahead; where the 95 % interval crosses it, we "
        f"cannot say.{seeds}"
    )


def arms_forest(folder: RunFolder, question: Question) -> Forest | None:
    """Every arm's figure over all sites of the federation; None when there is none."""
    figures = arm_figures(folder, question)
    items = [
        ForestItem(folder.arm(name).short, folder.arm(name).kind, figure, detail=folder.arm(name).detail)
        for name, figure in figures.items()
        if not _is_trivial(folder, name, question) or len(figures) == 1
    ]
    chance = _CHANCE.get(question.metric.lower(), 0.0)
    return forest(items, chance, "chance" if chance else "nought") if items else None


def _is_trivial(folder: RunFolder, name: str, question: Question) -> bool:
    """The majority class ranks nothing: its AUROC is chance by definition and would only stretch the axis."""
    return folder.arm(name).kind == "majority" and question.metric.lower() == "auroc"


def difference_forest(found: list[Contrast]) -> Forest | None:
    """Federated minus every other encoder; None when nothing was compared."""
    items = [ForestItem(item.title, item.kind, item.figure, str(item.verdict)) for item in worth_telling(found)]
    return forest(items, 0.0, "no difference", signed=True) if items else None


def efficiency(folder: RunFolder, question: Question) -> list[Panel]:
    """The main figure against the share of labels, and against labelled patients a class, where several were tried."""
    rows = of_protocol(folder, question.protocol)
    rows = rows[(rows["task"] == question.task) & (rows["metric"] == question.metric) & (rows["site"] == OVERALL)]
    curves = []
    names = [name for name in arm_figures(folder, question) if not _is_trivial(folder, name, question)]
    for name in names:
        groups = rows[rows["encoder"] == name].groupby("label_fraction", sort=False)
        points = {str(fraction): figure for fraction, group in groups if (figure := figure_of(group)) is not None}
        curves.append(Curve(folder.arm(name).short, folder.arm(name).kind, points))
    return efficiency_panels(curves, metric_title(question.metric))


def learning(folder: RunFolder) -> list[Panel]:
    """Pretraining loss per round at each site of the federated arm."""
    own = folder.curves["arm"].map(lambda name: folder.arm(str(name)).kind == "federated").astype(bool)
    return learning_panels(folder.curves[own])
