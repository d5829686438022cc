"""What a private study writes into the site's privacy ledger, and what it proves of it to the server."""

from client.policy import Policy
from client.site_file import SiteFile
from federation.audit.log import AuditHead, Extension
from federation.privacy.ledger import Budget, Ledger
from federation.privacy.plan import plan_of
from federation.study import Study
from foundation.errors import RunError, StudyError


class LedgerNotContinuedError(RunError):
    """The privacy ledger does not go on from the head that the server holds."""


class SiteLedger:
    """The one book of what was spent on this site's patients, as one private study uses it.

    StudyError where the site file names none.
    """

    def __init__(self, site_file: SiteFile, study: Study) -> None:
        if site_file.ledger is None:
            raise StudyError(
                f"site {site_file.site}: the study {study.name} is private, and this site file has no `ledger`: name "
                "the one file in which every study on these patients is written down (ledger: ledger.jsonl)"
            )
        self._study = study
        self._budget = budget_of(site_file.policy)
        self._ledger = Ledger(site_file.ledger)

    def extension(self, known: AuditHead) -> Extension:
        """The ledger's head, proved from the one that the server holds.

        LedgerNotContinuedError where that one is not in the ledger, which then understates what was spent.
        """
        try:
            return self._ledger.extension(known)
        except RunError as error:
            raise LedgerNotContinuedError(str(error)) from error

    def charge(self, round_: int) -> None:
        """Write down what the round will have spent, before any of its noise is drawn; it stays, whatever happens then.

        BudgetSpentError where it would be more than the policy permits; nothing is written then.
        """
        plan, privacy = plan_of(self._study), self._study.privacy
        assert plan is not None and privacy is not None
        self._ledger.charge(self._study.training_hash(), round_, plan.per_round, self._budget, privacy.unit)


def budget_of(policy: Policy | None) -> Budget | None:
    """What the policy permits all studies together to cost a patient; None: it sets no bound."""
    own = None if policy is None else policy.privacy_budget
    return None if own is None else Budget(own.epsilon, own.delta)
