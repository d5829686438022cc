"""What a private study promises, and what this site's privacy ledger says of it: for a person who has to decide."""

from collections.abc import Iterator
from pathlib import Path

from client.policy import Policy
from client.privacy.ledger import budget_of
from federation.privacy.accounting import epsilon_of
from federation.privacy.config import PatientPrivacyConfig
from federation.privacy.ledger import read_charges
from federation.privacy.plan import plan_of
from federation.privacy.words import meaning, not_covered
from federation.study import Study
from imaging.inspection.finding import Finding


def promise(study: Study) -> Iterator[str]:
    """The promise in figures, in words, and what it does not cover; a study without privacy promises nothing."""
    privacy, plan = study.privacy, plan_of(study)
    if privacy is None or plan is None:
        yield "nothing: the study has no `privacy` section, and weights can give single images away"
        return
    if isinstance(privacy, PatientPrivacyConfig):
        yield "to each patient, whose presence with all images the weights hide"
        yield (
            f"each of {plan.steps:,} steps draws a patient with probability {privacy.rate:.3g}, shortens the gradient "
            f"to {privacy.clip:g} and adds noise of {plan.noise:g} times that, here, before anything leaves"
        )
    else:
        yield "to this site as a whole, and to its patients only as part of it"
        added = (
            "the server, which sees this site's own update, adds" if study.secure_aggregation is None else "sites add"
        )
        yield f"an update is shortened to {privacy.clip:g} here, and {added} noise to the sum of {privacy.sites} sites"
    yield f"epsilon {plan.epsilon:.3g} at delta {plan.delta:g}, for the whole study"
    yield from meaning(plan.epsilon, plan.delta, privacy.unit)
    yield from (f"not covered: {text}" for text in not_covered(study))


def ledger_lines(study: Study, policy: Policy | None, ledger: Path | None) -> Iterator[str]:
    """What a site's ledger has spent, and what the private study would make of it."""
    plan = plan_of(study)
    if plan is None:
        return
    if ledger is None:
        yield "there is none: set `ledger` in the site file, or no round of this study is trained"
        return
    budget = budget_of(policy)
    delta = plan.delta if budget is None else budget.delta
    spent, after = spent_and_after(study, ledger, delta)
    yield f"{ledger.name}: spent so far epsilon {spent:.3g} at delta {delta:g}, by all studies together"
    yield f"with all rounds of this study: {after:.3g}; a round that is trained again is spent again"
    if budget is None:
        yield "policy.privacy_budget sets no bound"
    elif after > budget.epsilon:
        yield f"policy.privacy_budget is {budget.epsilon:g}: this site stops before it is passed, and before the end"
    else:
        yield f"policy.privacy_budget is {budget.epsilon:g}: {budget.epsilon - after:.3g} are left after the study"


def spent_and_after(study: Study, ledger: Path, delta: float) -> tuple[float, float]:
    """Epsilon of the ledger now, and with every round of a private study; a ledger that is not there is not made."""
    plan = plan_of(study)
    assert plan is not None
    releases = [charge.release for charge in read_charges(ledger)]
    return epsilon_of(releases, delta), epsilon_of([*releases, *[plan.per_round] * study.rounds.count], delta)


def private_rows(study: Study, ledger: Path | None) -> list[tuple[str, str]]:
    """What a check tells of a private study, a row a thing."""
    plan = plan_of(study)
    if study.privacy is None or plan is None:
        return []
    rows = [("privacy", f"by {study.privacy.unit}: epsilon {plan.epsilon:.3g} at delta {plan.delta:g}, whole study")]
    if ledger is None:
        return rows
    spent, after = spent_and_after(study, ledger, plan.delta)
    return [*rows, ("privacy ledger", f"epsilon {spent:.3g} spent by all studies, {after:.3g} with this one's rounds")]


def private_findings(study: Study, policy: Policy | None, ledger: Path | None) -> Iterator[Finding]:
    """What stands in the way of a private study: no ledger, or a budget that ends before the study does.

    Without a site file (no ``policy``) there is nothing to say yet.
    """
    if policy is None:
        return
    if ledger is None:
        text = "the study is private, and the site file names no `ledger`"
        remedy = "set ledger: to the one file in which every study on these patients is written down"
        yield Finding("error", "study", "no ledger", text, remedy)
        return
    budget = budget_of(policy)
    if budget is None:
        return
    after = spent_and_after(study, ledger, budget.delta)[1]
    if after > budget.epsilon:
        text = (
            f"all rounds of the study would bring the ledger to epsilon {after:.3g}, above the {budget.epsilon:g} of "
        )
        remedy = "raise it, or ask for a study that costs less: this site would stop in the middle"
        yield Finding("warning", "study", "budget", f"{text}policy.privacy_budget", remedy)
