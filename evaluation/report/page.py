"""The report of a run: one HTML file that opens from disk; the answer first, then how, then what not to conclude."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.arm_table import DESCRIPTION_NAME
from evaluation.explain.encoder_images import EXPLANATIONS, TITLES
from evaluation.explain.image_panels import panels
from evaluation.export.model_card import CARD_NAME, model_card
from evaluation.report import figures as report_figures
from evaluation.report.answers import (
    BASELINE,
    RIVAL,
    Contrast,
    answer,
    at_single_sites,
    contrasts,
    outside_sentences,
    worth_telling,
)
from evaluation.report.cautions import cautions, demonstration_text, elsewhere_text, left_out_sites, study_settings
from evaluation.report.explain_lag import explain_lag
from evaluation.report.feature_map import feature_panels
from evaluation.report.privacy_section import privacy_section
from evaluation.report.reliability import reliability_panels
from evaluation.report.run_folder import RunFolder, read_run
from evaluation.report.tables import results as result_tables
from evaluation.report.tables import run as run_tables
from evaluation.report.tables import sites as site_tables
from evaluation.report.tables.attack_rows import attack_section
from evaluation.report.tables.similarity_rows import alike_rows
from evaluation.statistics.metric_values import (
    MetricQuery,
    main_question,
    metric_title,
    protocol_title,
    select,
    sites_of,
)
from evaluation.tasks.leaks import leak_sentence
from foundation.files import write_text

REPORT_NAME = "report.html"
_TOLD_FIRST = (BASELINE, "pixels", "position", "local-only")
"""Kinds that the answer speaks of where one encoder is in question."""
_TOLD_OF_SEVERAL = (BASELINE, RIVAL, "pixels")


def write_report(run: Path, images: bool = False) -> Path:
    """Write ``report.html`` into a run folder from its records, and a model card beside it; returns the page's path.

    images: show test images as the encoders see them; the page then holds images of patients. Needs
    ``results.csv``; what else is missing is named in the report. RunError when results.csv is missing or damaged.
    """
    page, folder = run / REPORT_NAME, read_run(run)
    shown = panels(run, _shown(folder)) if images else []
    titled = {one.title: folder.arm(one.name).short for one in folder.arms}
    shown = [replace(panel, encoder=titled.get(panel.encoder, panel.encoder)) for panel in shown]
    explained = {"image_titles": TITLES, "image_explanations": EXPLANATIONS}
    write_page(page, REPORT_NAME, page_values(folder) | explained | {"images": shown})
    if folder.about_one and _is_there(folder):
        write_text(run / CARD_NAME, model_card(run, folder.leads[0]))
    return page


def _is_there(folder: RunFolder) -> bool:
    """Whether the federated encoder is in the run."""
    return any(any(folder.path.glob(f"arms/{arm}/fold-0/seed-*/{DESCRIPTION_NAME}")) for arm in folder.leads)


def _shown(folder: RunFolder) -> list[str]:
    """The encoders in question, and what they started from."""
    arms = [arm.name for arm in folder.arms]
    return [*folder.leads, *(name for name in arms if any(folder.is_base(lead, name) for lead in folder.leads))]


def write_page(page: Path, template: str, values: dict[str, Any]) -> None:
    """Fill a template of this folder and write it; values of every sort are text in it, never markup."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # No line breaks between a number and its per cent sign.
    write_text(page, environment.get_template(template).render(values).replace("95 %", "95\u00a0%"))


def page_values(folder: RunFolder) -> dict[str, Any]:
    """Everything that the template prints, by name."""
    query = main_question(folder)
    found = contrasts(folder, query)
    return {
        "folder": folder,
        "info": folder.info,
        "title": folder.info.get("title") or folder.info.get("name") or folder.path.resolve().name,
        "kicker": "Federated pretraining" if folder.about_one else "Pretrained encoders",
        "datasets": ", ".join(sorted(set(folder.results["dataset"]) - {""})),
        "question": query,
        "metric": metric_title(query.metric),
        "protocol": protocol_title(query.protocol),
        "labels": report_figures.all_labels(query),
        "answer": answer(found, folder, query),
        "outside": [line for site in left_out_sites(folder) for line in outside_sentences(folder, query, site)],
        "sentences": sentences(folder, query, found),
        "demonstration": demonstration_text(folder),
        "elsewhere": elsewhere_text(folder),
        **_figures(folder, query, found),
        **_how(folder),
        "cautions": cautions(folder, query, found),
        "result_rows": result_tables.result_rows(folder),
    }


def sentences(folder: RunFolder, query: MetricQuery, found: list[Contrast]) -> list[str]:
    """The comparisons after the answer: of one encoder the others, of several each with its base, pixels and rivals."""
    if len(folder.leads) < 2:
        return [item.sentence for item in worth_telling(found) if item.kind not in _TOLD_FIRST]
    sites = sites_of(select(folder, query))
    reported = [item for item in found if item.kind in _TOLD_OF_SEVERAL]
    return [
        f"{item.sentence} {at_single_sites(folder, query, item, sites) if item.kind == RIVAL else ''}".strip()
        for item in reported
    ]


def _figures(folder: RunFolder, query: MetricQuery, found: list[Contrast]) -> dict[str, Any]:
    columns = site_tables.site_columns(folder, query)
    return {
        "arms_forest": report_figures.arms_forest(folder, query),
        "difference_forest": report_figures.difference_forest(folder, found),
        "figure_one": report_figures.difference_caption(folder, query, found),
        "figure_two": report_figures.arms_caption(folder, query),
        "comparison_rows": result_tables.comparison_table(folder, worth_telling(found)),
        "skipped_fractions": result_tables.skipped_fractions(folder, query),
        "site_columns": columns,
        "site_rows": site_tables.site_rows(folder, query, columns),
        "federated_rows": result_tables.federated_rows(folder),
        "efficiency": report_figures.efficiency(folder, query),
        "reliability": reliability_panels(folder, query),
        "features": feature_panels(folder),
        "diagnostics": result_tables.diagnostic_rows(folder),
        "alike": (alike := alike_rows(folder)),
        "alike_sites": list(alike[0].sites) if alike else [],
        "why": explain_lag(folder),
        "seed_spread": result_tables.seed_spread(folder, query),
        "learning": report_figures.learning(folder),
    }


def _how(folder: RunFolder) -> dict[str, Any]:
    roles, rows = site_tables.split_table(folder)
    return {
        "roles": roles,
        "split_rows": rows,
        "other_skipped": site_tables.skipped_elsewhere(folder, rows),
        "folds": int(folder.splits["fold"].nunique()),
        "leak_statement": leak_sentence(folder.leaks) if folder.leaks else "",
        "budget_statement": run_tables.budget_statement(folder),
        "cost": [line for line in (run_tables.traffic_statement(folder), run_tables.energy_statement(folder)) if line],
        "privacy": privacy_section(folder),
        "attacks": attack_section(folder.path),
        "settings": run_tables.settings(study_settings(folder)),
        "budget_rows": run_tables.budget_rows(folder),
        "facts": run_tables.facts(folder),
    }
