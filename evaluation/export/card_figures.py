"""The parts of a model card on what the encoder is worth: the answer, the tables, what not to conclude from them."""

from evaluation.export.markdown import plain, table
from evaluation.report.answers import answer, contrasts
from evaluation.report.cautions import cautions, left_out_sites
from evaluation.report.run_folder import RunFolder
from evaluation.statistics.metric_values import (
    MetricQuery,
    MetricValue,
    arm_figures,
    digits_for,
    figure_of,
    fraction_size,
    fraction_title,
    interval_text,
    main_question,
    metric_rank,
    metric_title,
    number,
    protocol_rank,
    protocol_title,
    question_text,
    select,
    sites_of,
)
from evaluation.statistics.results_schema import ALL, Statistic

UNJUDGED = (
    "Nothing is known of what this encoder is worth: the run was not evaluated. Judge it on labelled images of your "
    "own first (`fedpretext evaluate`)."
)


def in_short(folder: RunFolder) -> str:
    """The report's answer."""
    query = main_question(folder)
    return " ".join(plain(line) for line in answer(contrasts(folder, query), folder, query))


def figures(folder: RunFolder, arm: str) -> str:
    """Every arm at the main question, this one site by site, and this one's other figures."""
    query = main_question(folder)
    parts = [
        f"{plain(query.task)}: {question_text(query)}. Intervals are 95 %, over {folder.unit}.",
        _arms(folder, query, arm),
        _differences(folder, query, arm),
        _sites(folder, query, arm),
        _others(folder, query, arm),
    ]
    return "\n\n".join(part for part in parts if part)


def _arms(folder: RunFolder, query: MetricQuery, arm: str) -> str:
    rows = []
    for name, figure in arm_figures(folder, query).items():
        title = plain(folder.arm(name).title)
        rows.append([f"**{title}**" if name == arm else title, *_cells(figure)])
    return table(["encoder", metric_title(query.metric), "95 % interval", folder.unit], rows)


def _differences(folder: RunFolder, query: MetricQuery, arm: str) -> str:
    """This encoder against the others, on the same patients."""
    rows = []
    for contrast in contrasts(folder, query):
        if arm in (contrast.own, contrast.other):
            pair = [plain(folder.arm(name).short) for name in (contrast.own, contrast.other)]
            digits = digits_for(contrast.figure)
            value = number(contrast.figure.value, signed=True, digits=digits)
            interval = plain(interval_text(contrast.figure, signed=True, digits=digits))
            rows.append([" minus ".join(pair), value, interval, str(contrast.verdict)])
    if not rows:
        return ""
    heads = ["difference, paired", metric_title(query.metric), "95 % interval", "in a word"]
    return f"This encoder against others on the same {folder.unit}:\n\n{table(heads, rows)}"


def _cells(figure: MetricValue) -> list[str]:
    return [number(figure.value), plain(interval_text(figure)), str(figure.n) if figure.n is not None else "–"]


def _sites(folder: RunFolder, query: MetricQuery, arm: str) -> str:
    outside = left_out_sites(folder)
    rows = []
    for site in sites_of(select(folder, query)):
        figure = arm_figures(folder, query, site).get(arm)
        if figure is not None:
            rows.append([plain(site) + (", took no part in training" if site in outside else ""), *_cells(figure)])
    if not rows:
        return ""
    mean = arm_figures(folder, query, statistic=Statistic.SITE_MEAN).get(arm)
    if mean is not None:
        rows.append(["mean of the sites, by their " + folder.unit, *_cells(mean)])
    heads = ["site", metric_title(query.metric), "95 % interval", folder.unit]
    return f"This encoder site by site; sites are numbered, not named:\n\n{table(heads, rows)}"


def _others(folder: RunFolder, query: MetricQuery, arm: str) -> str:
    """The arm's other figures over all test sites."""
    own = folder.results[(folder.results["encoder"] == arm) & (folder.results["site"] == ALL)]
    own = own[own["statistic"] != Statistic.SITE_MEAN]
    rows = []
    for key, group in own.groupby(["task", "protocol", "metric", "label_fraction", "statistic"], sort=False):
        task, protocol, metric, fraction, statistic = map(str, key)
        figure = figure_of(group)
        asked = statistic == Statistic.ESTIMATE and MetricQuery(task, protocol, metric, fraction) == query
        if figure is None or asked:
            continue
        order = (task, protocol_rank(protocol), [-part for part in fraction_size(fraction)], metric_rank(metric))
        labels = "–" if protocol == "diagnostic" else fraction_title(fraction)
        named = [plain(task), plain(protocol_title(protocol)), labels, plain(metric_title(metric, statistic))]
        rows.append((order, [*named, *_cells(figure)]))
    if not rows:
        return ""
    heads = ["task", "protocol", "labels", "metric", "value", "95 % interval", folder.unit]
    cells = [row for _, row in sorted(rows, key=lambda item: item[0])]
    return f"All other figures of this encoder over all test sites:\n\n{table(heads, cells)}"


def not_to_conclude(folder: RunFolder) -> str:
    """The report's cautions."""
    query = main_question(folder)
    found = cautions(folder, query, contrasts(folder, query))
    lines = [f"- **{plain(heading)}** {plain(text)}" for heading, text in found]
    return "\n".join(["As the run's report says, which holds the tables that are spoken of:", "", *lines])
