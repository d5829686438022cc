"""``fedpretext privacy``: what was spent on a pool of patients, what a study would add, and what the figure means."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

from client.site_file import SITE_FILE, SiteFile, find_site_file, load_site_file
from federation.privacy.accounting import Release, epsilon_of, noise_for, recomputed
from federation.privacy.config import PatientPrivacyConfig
from federation.privacy.ledger import Charge, read_charges
from federation.privacy.plan import LEAST_SIGNAL, PrivacyPlan, plan_of, signal_to_noise, study_signal, trained_numbers
from federation.privacy.words import meaning, not_covered
from federation.study import Study, load_study
from foundation.errors import StudyError

_DELTA = 1e-5  # where neither a budget nor a study says one
_PATIENTS = (10, 13, 20, 36, 50, 100, 200, 500, 1000, 5000)  # sites of such sizes are shown beside the study's own


def privacy_lines(place: Path, study: Path | None = None, check: bool = False, width: int = 80) -> list[str]:
    """The page, a line a row, wrapped to ``width``. StudyError, RunError where a file is missing or wrong.

    place: a site file or kit folder, of whose ledger it tells, or a study file, of which it tells the plan. study: what
    would be trained next (default: the kit's). check: also the figures of a second accountant.
    """
    if not place.is_dir() and not _is_site_file(place):
        lines = _study_page(load_study(place), check)
    else:
        path = find_site_file(place)
        beside = path.parent / "study.yaml"
        chosen = study if study is not None else beside if beside.is_file() else None
        lines = _site_page(load_site_file(path), None if chosen is None else load_study(chosen), check)
    return [part for line in lines for part in _wrapped(line, width)]


def _is_site_file(path: Path) -> bool:
    if path.suffix not in (".yaml", ".yml"):
        raise StudyError(f"{path}: is neither a study file nor a site file nor a kit; give one of them")
    if not path.is_file():
        raise StudyError(f"{path}: there is no such file; give a study file, a site file ({SITE_FILE}) or a kit")
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return False  # the study's reader says what is wrong with it
    return isinstance(raw, dict) and "site" in raw


def _site_page(site: SiteFile, study: Study | None, check: bool) -> Iterator[str]:
    if site.ledger is None:
        raise StudyError(f"site {site.site}: its site file names no `ledger`; add the line  ledger: ledger.jsonl")
    charges, plan = read_charges(site.ledger), None if study is None else plan_of(study)
    budget = site.policy.privacy_budget
    delta = budget.delta if budget is not None else plan.delta if plan is not None else _DELTA
    yield f"patients of site {site.site}, ledger {site.ledger.name}: {len(charges)} charges; epsilon at delta {delta:g}"
    yield ""
    yield _row("", "charges", "steps", "epsilon")
    for hash_, own in _by_study(charges).items():
        yield _cost(f"study {hash_[:12]}", own, delta)
    everything = [charge.release for charge in charges]
    yield _cost("spent, all studies together", everything, delta)
    after = everything
    if plan is not None and study is not None:
        planned = _still_planned(study, plan, charges)
        after = [*everything, *planned]
        yield _cost(f"still to come of {study.name}", planned, delta)
        yield _cost("spent after it", after, delta)
    spent = epsilon_of(everything, delta)
    if budget is not None:
        yield _row("left of the budget", "", "", f"{max(0.0, budget.epsilon - spent):.3f}")
        if epsilon_of(after, delta) > budget.epsilon:
            yield f"warning: that is over the budget of {budget.epsilon:g}: this site will stop before the study ends"
    else:
        yield "no budget is set (policy.privacy_budget): nothing stops this"
    if check:
        yield f"a second accountant (Opacus) gives {recomputed(everything, delta):.3f} for what is spent"
    if study is not None and plan is None:
        yield f"study {study.name} has no `privacy` section: it promises nothing, and is not counted here"
    yield ""
    yield from meaning(spent if plan is None else epsilon_of(after, delta), delta)
    if study is not None:
        yield from _not_covered(study)


def _by_study(charges: list[Charge]) -> dict[str, list[Release]]:
    found: dict[str, list[Release]] = {}
    for charge in charges:
        found.setdefault(charge.study, []).append(charge.release)
    return found


def _still_planned(study: Study, plan: PrivacyPlan, charges: list[Charge]) -> list[Release]:
    """The releases of the rounds that were not charged yet. A round that is done again is charged again."""
    own = study.training_hash()
    done = {charge.round for charge in charges if charge.study == own}
    return [plan.per_round for round_ in range(1, study.rounds.count + 1) if round_ not in done]


def _study_page(study: Study, check: bool) -> Iterator[str]:
    plan, privacy = plan_of(study), study.privacy
    if plan is None or privacy is None:
        yield f"study {study.name} has no `privacy` section: weights leak, and nothing is promised"
        return
    yield from plan_lines(study, plan)
    if check:
        whole = [plan.per_round] * study.rounds.count
        yield f"a second accountant (Opacus) gives epsilon {recomputed(whole, plan.delta):.3f}"
    yield ""
    yield from meaning(plan.epsilon, plan.delta, privacy.unit)
    yield from _not_covered(study)
    if isinstance(privacy, PatientPrivacyConfig):
        yield ""
        yield f"the same epsilon, steps and {privacy.patients_per_step} patients a step at sites of other sizes:"
        yield "  patients    delta       q    noise  best signal-to-noise of one site"
        numbers = trained_numbers(study)
        for patients in _PATIENTS:
            delta, taken = min(privacy.delta, 1 / (10 * patients)), min(privacy.patients_per_step, patients)
            noise = noise_for(privacy.epsilon, delta, taken / patients, plan.steps)
            signal = signal_to_noise(noise, taken, plan.steps, numbers)
            yield f"  {patients:8,} {delta:8.1e} {taken / patients:7.3f} {noise:8.2f} {signal:9.3f}"


def plan_lines(study: Study, plan: PrivacyPlan, sites: int = 1) -> Iterator[str]:
    """What the study draws of noise and what it costs; a warning where that leaves nothing to learn.

    sites: those that train, where it is known.
    """
    privacy = study.privacy
    assert privacy is not None
    what = "steps" if privacy.unit == "patient" else "rounds"
    yield (
        f"privacy by {privacy.unit}: noise {plan.noise:g} x the clipping bound {privacy.clip:g}, q {plan.rate:.3g}, "
        f"{plan.steps:,} {what} in all: epsilon {plan.epsilon:.3f} at delta {plan.delta:g}"
    )
    signal = study_signal(study, plan, sites)
    yield f"signal-to-noise of the study at best: {signal:.3g} (1: its noise leads as far as it can learn)"
    if signal < LEAST_SIGNAL:
        yield (
            f"warning: signal-to-noise {signal:.3g} is under {LEAST_SIGNAL:g}: the encoder will very likely equal its "
            "start; have more patients a step, freeze lower blocks (encoder.frozen_blocks) or take a smaller encoder"
        )


def _not_covered(study: Study) -> Iterator[str]:
    lines = not_covered(study)
    if lines:
        yield ""
        yield "Not covered:"
        yield from (f"- {line}" for line in lines)


def _cost(label: str, releases: list[Release], delta: float) -> str:
    steps = sum(release.steps for release in releases)
    return _row(label, f"{len(releases):,}", f"{steps:,}", f"{epsilon_of(releases, delta):.3f}")


def _row(label: str, charges: str, steps: str, epsilon: str) -> str:
    return f"  {label:44.44} {charges:>8} {steps:>10} {epsilon:>10}"


def _wrapped(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False) if len(line) > width else [line]
