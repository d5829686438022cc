"""Why a federated encoder lags a centralised one, as far as the run's figures say: what goes with it, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import numpy as np

from evaluation.inputs import Inputs, read_inputs
from evaluation.report.answers import Contrast, contrasts
from evaluation.report.run_folder import RunFolder
from evaluation.report.sentences import Verdict
from evaluation.statistics.intervals import FloatArray
from evaluation.statistics.metric_values import interval_text, main_question, metric_title, number
from evaluation.statistics.results_schema import ALL
from foundation import events
from foundation.errors import FedpretextError
from foundation.files import read_jsonl

COSINE_APART = 0.1
"""A site stands apart in a layer where its cosine is so far below that of every other site. Three sites of 24
images each, all of one kind, lay within 0.06 of each other; with those of one inverted it lay 0.13 to 0.17 below."""
LENGTH_APART = 3.0
"""So many times as long (or as short) as the others' updates, in most layers. Steps of AdamW are about equally long, so
this is what some three times as many steps come to, or a loss that never settles."""
INTENSITY_APART = 0.05
"""Distance of grey values, as a share of the way from black to white. Four hospitals' MRI (lgg_mri_128) lay 0.01 from
each other; inverted images lie above 0.5."""
LEAKAGE_APART = 0.1
"""So much better is the site predicted from federated than from centralised features (balanced accuracy)."""
SIZE_APART = 10.0
"""The largest site has so many times the images of the smallest: an average by images then hardly counts the latter."""
BINS = 32
_IMAGES = 500  # of a site, evenly spread: more would not move a histogram of 32 bins
_AT_ONCE = 64


@dataclass(frozen=True)
class SiteLayer:
    """One site's update of one layer beside the others', means over the rounds: ``server.monitoring.divergence``."""

    cosine: float
    norm_ratio: float


@dataclass(frozen=True)
class Evidence:
    """What a run knows of the sites that trained together; what it does not know is empty.

    divergence: by site and layer. histograms: by site, shares of ``BINS`` grey values. leakage: how well the site is
    predicted from federated and from centralised features. collapsing: sites with that alarm. sizes: images by site.
    """

    divergence: Mapping[str, Mapping[str, SiteLayer]] = field(default_factory=dict)
    histograms: Mapping[str, FloatArray] = field(default_factory=dict)
    leakage: tuple[float, float] | None = None
    collapsing: frozenset[str] = frozenset()
    sizes: Mapping[str, int] = field(default_factory=dict)


def explain_lag(folder: RunFolder) -> list[str]:
    """Sentences on each federated encoder beside the centralised one; [] where there is none of either.

    Reasons are looked for only where the whole interval of the difference lies on the worse side of zero.
    """
    lines = []
    for contrast in contrasts(folder, main_question(folder)):
        if contrast.kind == "centralised" and folder.arm(contrast.own).kind == "federated":
            lines.append(_verdict_line(folder, contrast))
            if contrast.verdict is Verdict.WORSE:
                lines += reasons(_evidence(folder, contrast))
    return lines


def _verdict_line(folder: RunFolder, contrast: Contrast) -> str:
    metric, figure = metric_title(main_question(folder).metric), contrast.figure
    apart = f"{metric} {number(figure.value, signed=True)} against centralised"
    bounds = interval_text(figure, signed=True)
    who = folder.arm(contrast.own).short
    if contrast.verdict is Verdict.WORSE:
        return (
            f"{who} lags: {apart} (95 % interval {bounds}). What stands out among the sites follows: it goes with the "
            "lag, and none of it is shown to be the cause."
        )
    if contrast.verdict is Verdict.BETTER:
        return f"{who} does not lag: {apart} (95 % interval {bounds})."
    if contrast.verdict is Verdict.UNCLEAR:
        return f"No lag is shown for {who}: {apart} (95 % interval {bounds}, which contains zero)."
    return f"Whether {who} lags cannot be said: {apart}, with {bounds}."


def reasons(evidence: Evidence) -> list[str]:
    """A sentence for everything that stands out, each with its figure and its caveat; one line where nothing does."""
    sites = sorted({*evidence.sizes, *evidence.divergence, *evidence.histograms})
    lines = [line for line in (_on_pair(evidence), *(_on_site(evidence, site) for site in sites)) if line]
    lines += [line for line in (_on_collapse(evidence), _on_leakage(evidence), _on_sizes(evidence)) if line]
    return lines or [_nothing(evidence)]


def _on_site(evidence: Evidence, site: str) -> str:
    """Where one site's updates and images differ from all others', "" where neither does."""
    parts = [part for part in (_direction(evidence, site), _length(evidence, site)) if part]
    distances = intensity_distances(evidence.histograms)
    if distances.get(site, 0.0) >= INTENSITY_APART:
        apart = f"distance {number(distances[site])} from the site most like it; see its histogram"
        parts.append(f"its grey values differ ({apart})")
    if not parts:
        return ""
    caveat = "Scanners, patients and findings differ together, so this says that the site is different, not why."
    if _length(evidence, site):
        caveat = f"Few steps alone make an update short, and its direction uncertain. {caveat}"
    return f"Site {site}: {'; '.join(parts)}. {caveat}"


def _direction(evidence: Evidence, site: str) -> str:
    """The layers in which its updates point elsewhere; with two sites neither is the one that does."""
    own, others = evidence.divergence.get(site, {}), [s for s in evidence.divergence if s != site]
    if len(others) < 2:
        return ""
    rest = {
        name: [evidence.divergence[s][name].cosine for s in others if name in evidence.divergence[s]] for name in own
    }
    apart = [name for name in own if rest[name] and own[name].cosine <= min(rest[name]) - COSINE_APART]
    if not apart:
        return ""
    mine = fmean(own[name].cosine for name in apart)
    lowest = min(min(rest[name]) for name in apart)
    verb = "point away from the rest" if mine < 0 else "agree less with the rest than any other site's"
    return f"its updates {verb} in {_listed(apart, list(own))} (cosine {number(mine)}, others {number(lowest)} or more)"


def _length(evidence: Evidence, site: str) -> str:
    own = evidence.divergence.get(site, {})
    ratio = median(layer.norm_ratio for layer in own.values()) if own else 1.0
    if 1 / LENGTH_APART < ratio < LENGTH_APART:
        return ""
    return f"its updates are {number(ratio, digits=1)} times as long as the others' on average"


def _on_pair(evidence: Evidence) -> str:
    """Two sites have one angle between them."""
    if len(evidence.divergence) != 2:
        return ""
    first, second = sorted(evidence.divergence)
    layers = evidence.divergence[first]
    apart = [name for name in layers if layers[name].cosine < 0]
    if not apart:
        return ""
    mean = fmean(layers[name].cosine for name in apart)
    return (
        f"The updates of {first} and {second} point away from each other in {_listed(apart, list(layers))} (cosine "
        f"{number(mean)}). With two sites it cannot be said which of them is unlike the others."
    )


def _on_collapse(evidence: Evidence) -> str:
    if not evidence.collapsing:
        return ""
    return (
        f"In training the features of {', '.join(sorted(evidence.collapsing))} were becoming all alike in some rounds. "
        "Centralised training may have come through the same: see its own curves."
    )


def _on_leakage(evidence: Evidence) -> str:
    if evidence.leakage is None or evidence.leakage[0] - evidence.leakage[1] < LEAKAGE_APART:
        return ""
    own, centralised = map(number, evidence.leakage)
    return (
        f"The site can be predicted better from federated features than from centralised ones (balanced accuracy "
        f"{own}, centralised {centralised}): they hold more of what differs between sites. "
        "It may be patients, not scanners."
    )


def _on_sizes(evidence: Evidence) -> str:
    if len(evidence.sizes) < 2:
        return ""
    small, large = (pick(evidence.sizes, key=lambda site: evidence.sizes[site]) for pick in (min, max))
    if evidence.sizes[large] < SIZE_APART * evidence.sizes[small]:
        return ""
    return (
        f"The sites' sizes are far apart: {large} has {evidence.sizes[large]} images, "
        f"{small} {evidence.sizes[small]}. An update that counts by images is then nearly the largest site's; "
        "centralised training too sees mostly its images."
    )


def _nothing(evidence: Evidence) -> str:
    looked = {
        "directions and lengths of updates": evidence.divergence,
        "grey values": evidence.histograms,
        "site leakage": evidence.leakage,
        "sizes": evidence.sizes,
    }
    seen, unseen = ([name for name, there in looked.items() if bool(there) is found] for found in (True, False))
    said = f"Nothing stands out among the sites: looked at were {', '.join(seen)}." if seen else ""
    missing = f"Not recorded in this run: {', '.join(unseen)}." if unseen else ""
    return " ".join(part for part in (said, missing) if part)


def _listed(apart: Sequence[str], layers: Sequence[str]) -> str:
    """``all layers``, ``the last 2 layers, block 2 to head``, or their names, which come in the order of depth."""
    if len(apart) == len(layers):
        return "all layers"
    if len(apart) > 1 and list(apart) == list(layers[-len(apart) :]):
        return f"the last {len(apart)} layers, {apart[0]} to {apart[-1]}"
    return ", ".join(apart)


def intensity_histograms(inputs: Inputs) -> dict[str, FloatArray]:
    """By site, the shares of ``BINS`` equal bins of grey values from 0 to 1 in its images, as an encoder sees them.

    Of training and held images with a label, at most 500 a site, evenly spread over them.
    """
    view, images = inputs.view(), inputs.images
    found = {}
    for site in sorted(set(images.site.tolist())):
        places = np.flatnonzero(images.site == site).astype(np.int64)
        places = places[np.linspace(0, len(places) - 1, min(_IMAGES, len(places))).astype(np.int64)]
        counts = np.zeros(BINS)
        for start in range(0, len(places), _AT_ONCE):
            values = view.read(places[start : start + _AT_ONCE]).numpy()
            counts += np.histogram(values, BINS, (0.0, 1.0))[0]
        found[site] = np.asarray(counts / counts.sum(), dtype=np.float64)
    return found


def wasserstein(first: FloatArray, second: FloatArray) -> float:
    """1-Wasserstein distance of two histograms (shares) over [0, 1]: 0 to 1 - 1 / bins."""
    return float(np.abs(np.cumsum(first - second))[:-1].sum() / len(first))


def intensity_distances(histograms: Mapping[str, FloatArray]) -> dict[str, float]:
    """Each site's distance from the site most like it: one odd site does not make odd what it is compared with.

    {} with fewer than two sites.
    """
    if len(histograms) < 2:
        return {}
    return {
        site: min(wasserstein(own, other) for name, other in histograms.items() if name != site)
        for site, own in histograms.items()
    }


def _evidence(folder: RunFolder, contrast: Contrast) -> Evidence:
    arm, curves = contrast.own, folder.curves[folder.curves["arm"] == contrast.own]
    sizes = {str(site): int(n) for site, n in curves.groupby("site")["images"].max().dropna().items()}
    return Evidence(
        divergence=read_divergence(folder, arm),
        histograms=_histograms(folder, [*sizes]),
        leakage=_leakage(folder, arm, contrast.other),
        collapsing=frozenset(site for name, site in folder.collapsing if name == arm),
        sizes=sizes,
    )


def read_divergence(folder: RunFolder, arm: str) -> dict[str, dict[str, SiteLayer]]:
    """By site and layer, the means over an arm's rounds, folds and seeds; lengths by the geometric mean."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for path in sorted(folder.path.glob(f"arms/{arm}/fold-*/seed-*/{events.DIVERGENCE_NAME}")):
        for row in read_jsonl(path):
            layers = found.setdefault(str(row["site"]), {})
            for layer in row["layers"]:
                layers.setdefault(layer["name"], []).append((layer["cosine"], float(np.log(layer["norm_ratio"]))))
    return {
        site: {name: SiteLayer(*_means(pairs)) for name, pairs in layers.items()}
        for site, layers in sorted(found.items())
    }


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return fmean(cosine for cosine, _ in pairs), float(np.exp(fmean(log for _, log in pairs)))


def _histograms(folder: RunFolder, sites: Sequence[str]) -> dict[str, FloatArray]:
    """Of the sites that trained; {} where this run's images are not theirs, or not there."""
    try:
        found = intensity_histograms(read_inputs(folder.path, show=False))
    except FedpretextError:
        return {}
    return {site: shares for site, shares in found.items() if site in sites}


def _leakage(folder: RunFolder, own: str, centralised: str) -> tuple[float, float] | None:
    rows = folder.results
    rows = rows[(rows["metric"] == "site_leakage") & (rows["site"] == ALL)].dropna(subset=["value"])
    values = {str(arm): float(value) for arm, value in zip(rows["encoder"], rows["value"], strict=True)}
    return (values[own], values[centralised]) if {own, centralised} <= values.keys() else None
