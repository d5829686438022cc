"""The heads of the sites' privacy ledgers, as the server holds them: a ledger that was restored is found out.

A site's ledger says what was spent on its patients. It stays at the site; only the head of its hash chain is sent,
with every update of a private study. The server's audit log, no checkpoint, holds it, as of the party
``<site>/ledger``: it outlives a restart of the server, a study and a server that goes back to an older checkpoint, and
every next head has to go on from there.
"""

from dataclasses import dataclass

from federation.audit.log import NOTHING, AuditLog, Row
from federation.records import TrainReply
from foundation.errors import RunError

_REMEDY = "; once the site has said why: fedpretext accept-restart --ledger"


def ledger_party(site: str) -> str:
    """Whose log a site's ledger is called in the server's audit log; no site can have such a name."""
    return f"{site}/ledger"


@dataclass(frozen=True)
class _Update:
    """A site's last update: of which round, the rows that the ledger had then, and had at the round before."""

    round: tuple[str, int]
    rows: int
    before: int


class Ledgers:
    """Checks that an update was charged: its ledger goes on from the head held here, and has grown for its round.

    An update may come twice (a server that was killed asks again, and the site sends what it has stored, at no further
    charge), so that the ledger is held against the last update of another round. What is charged no head shows: a site
    whose program was changed can charge too little, as it can send weights without noise.
    """

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._last: dict[str, _Update] = {}

    def see(self, row: Row) -> None:
        """Go on from a row of the server's audit log."""
        if row["event"] == "update received" and "ledger" in row:
            self._take(str(row["site"]), (str(row["study"]), int(row["round"])), int(row["ledger"]))
        elif row["event"] == "chain restart accepted":
            self._last = {site: last for site, last in self._last.items() if ledger_party(site) != row["party"]}

    def receive(self, answer: TrainReply) -> dict[str, int]:
        """Hold the new head; what is written down of it beside the update. RunError when it is not accepted."""
        party, round_ = ledger_party(answer.site), (answer.study_hash, answer.round)
        if answer.ledger is None:
            raise RunError(f"the update of {answer.site} came without the head of its privacy ledger")
        if self._audit.known(party) == NOTHING:  # the first one, or that of a ledger whose restart was accepted
            self._last.pop(answer.site, None)
        if answer.ledger.head.count <= self._before(answer.site, round_):
            raise RunError(
                f"the privacy ledger of {answer.site} has no new row for the update that came with it: what the update "
                f"spends is not written down{_REMEDY}"
            )
        try:
            self._audit.receive(party, answer.ledger)
        except RunError as error:
            raise RunError(f"{error}{_REMEDY}") from error
        self._take(answer.site, round_, answer.ledger.head.count)
        return {"ledger": answer.ledger.head.count}

    def _before(self, site: str, round_: tuple[str, int]) -> int:
        """The rows that the ledger had when the site last updated another round."""
        last = self._last.get(site)
        if last is None:
            return 0
        return last.before if last.round == round_ else last.rows

    def _take(self, site: str, round_: tuple[str, int], rows: int) -> None:
        self._last[site] = _Update(round_, rows, self._before(site, round_))
