"""The ledger of a pool of patients: what is charged stays charged, and nothing passes the budget."""

import json
import threading
from pathlib import Path

import pytest

from federation.audit.log import NOTHING, AuditLog, verify
from federation.privacy.accounting import Release, epsilon_of
from federation.privacy.ledger import PARTY, Budget, BudgetSpentError, Ledger, read_charges
from foundation.errors import RunError

STUDY = "a" * 64
STEP = Release("gaussian", 2.0, 0.1, 100)
DISCRETE = Release("discrete gaussian", 3.0, 1.0, 1, 1000, 65536.0, 5)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def rows(ledger: Ledger) -> list[dict[str, object]]:
    return [json.loads(line) for line in ledger.path.read_text().splitlines()]


def test_what_is_charged_can_be_read_again(ledger: Ledger) -> None:
    heads = [ledger.charge(STUDY, 1, STEP, None), ledger.charge("b" * 64, 7, DISCRETE, None, unit="site")]
    assert verify(ledger.path).head == heads[-1] and heads[0].count + 1 == heads[1].count
    assert ledger.releases() == Ledger(ledger.path).releases() == [STEP, DISCRETE]
    assert [(c.study, c.round, c.unit) for c in read_charges(ledger.path)] == [
        (STUDY, 1, "patient"),
        ("b" * 64, 7, "site"),
    ]
    assert ledger.spent(1e-4) == epsilon_of([STEP, DISCRETE], 1e-4)


def test_a_row_holds_the_noise_and_nothing_about_patients(ledger: Ledger) -> None:
    ledger.charge(STUDY, 1, STEP, None)
    ledger.charge(STUDY, 2, DISCRETE, None)
    chain = {"n", "time", "event", "by", "salt", "previous", "hash"}
    always = {"study", "round", "unit", "mechanism", "noise", "rate", "steps"}
    assert rows(ledger)[1].keys() - chain == always
    assert rows(ledger)[2].keys() - chain == always | {"dimension", "deviation", "survivors"}
    assert {row["by"] for row in rows(ledger)} == {PARTY}


def test_studies_of_all_leads_add_up(ledger: Ledger) -> None:
    """Budget for just one study's four rounds: the fifth round, of another study, is refused, and leaves no row."""
    budget = Budget(epsilon_of([STEP] * 4, 1e-4), 1e-4)
    for round_ in range(1, 5):
        ledger.charge(STUDY, round_, STEP, budget)
    before = ledger.path.read_bytes()
    with pytest.raises(BudgetSpentError) as caught:
        ledger.charge("b" * 64, 1, Release("gaussian", 50.0), budget)
    answer = str(caught.value)
    spent, would = (epsilon_of(held, 1e-4) for held in ([STEP] * 4, [*[STEP] * 4, Release("gaussian", 50.0)]))
    assert f"epsilon {spent:.3f} of {budget.epsilon:g} is spent" in answer and f"would make it {would:.3f}" in answer
    assert "raise policy.privacy_budget" in answer and "\n" not in answer
    assert ledger.path.read_bytes() == before
    ledger.charge("b" * 64, 1, Release("gaussian", 50.0), None)  # another pool's policy may set no bound
    assert len(ledger.releases()) == 5


def test_two_studies_at_once_do_not_both_slip_under_the_budget(ledger: Ledger) -> None:
    budget = Budget(epsilon_of([STEP] * 3, 1e-4) * 1.01, 1e-4)
    taken, refused = [], []
    start = threading.Barrier(8)

    def charge(number: int) -> None:
        own = Ledger(ledger.path)
        start.wait()
        try:
            taken.append(own.charge(f"{number}" * 64, 1, STEP, budget))
        except BudgetSpentError as error:
            refused.append(error)

    threads = [threading.Thread(target=charge, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(ledger.releases()) == 3 and len(refused) == 5


def test_two_paths_to_one_ledger_have_one_lock(ledger: Ledger, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link.jsonl"
    link.parent.mkdir()
    link.symlink_to(ledger.path)
    Ledger(link).charge(STUDY, 1, STEP, None)
    assert ledger.releases() == [STEP]
    assert not list(link.parent.glob(".*.lock"))


def test_a_broken_chain_takes_no_charge(ledger: Ledger) -> None:
    for round_ in (1, 2):
        ledger.charge(STUDY, round_, STEP, None)
    whole = ledger.path.read_text()
    ledger.path.write_text(whole.replace('"steps":100', '"steps":1', 1))
    for attempt in (lambda: ledger.charge(STUDY, 3, STEP, None), ledger.releases, lambda: ledger.spent(1e-5)):
        with pytest.raises(RunError, match=r"chain is broken at row 2: its content was changed; nothing is charged"):
            attempt()
    lines = whole.splitlines(keepends=True)
    ledger.path.write_text(lines[0] + lines[2])  # a row taken out
    with pytest.raises(RunError, match="chain is broken at row 2"):
        ledger.charge(STUDY, 3, STEP, None)


def test_a_torn_line_does_not_count_and_is_cut_off(ledger: Ledger) -> None:
    ledger.charge(STUDY, 1, STEP, None)
    with ledger.path.open("ab") as file:
        file.write(b'{"by":"patients","event":"privacy ch')
    assert len(read_charges(ledger.path)) == 1 and ledger.releases() == [STEP]
    ledger.charge(STUDY, 2, STEP, None)
    assert ledger.releases() == [STEP, STEP]


def test_what_is_no_ledger(tmp_path: Path) -> None:
    AuditLog(tmp_path / "audit.jsonl", "north").append("connection lost")
    with pytest.raises(RunError, match="is the audit log of 'north', no ledger"):
        read_charges(tmp_path / "audit.jsonl")
    with pytest.raises(RunError, match="is the audit log of 'north', not of 'patients'"):
        Ledger(tmp_path / "audit.jsonl")
    assert read_charges(tmp_path / "none.jsonl") == [] and not (tmp_path / "none.jsonl").exists()
    AuditLog(tmp_path / "odd.jsonl", PARTY).append("privacy charged", study=STUDY, round=1, unit="patient", noise=0.0)
    with pytest.raises(RunError, match="row 2 is no charge that a ledger writes"):
        read_charges(tmp_path / "odd.jsonl")


def test_a_restored_backup_does_not_go_on_from_the_head_that_was_told(ledger: Ledger) -> None:
    ledger.charge(STUDY, 1, STEP, None)
    backup = ledger.path.read_bytes()
    held = verify(ledger.path).head
    ledger.charge(STUDY, 2, STEP, None)
    later = ledger.extension(held)
    assert later.follows(held) and later.head == verify(ledger.path).head
    assert ledger.extension(NOTHING).head == verify(ledger.path).head
    ledger.path.write_bytes(backup)
    ledger.charge(STUDY, 2, Release("gaussian", 9.0), None)
    with pytest.raises(RunError, match="is not in this log"):
        ledger.extension(later.head)
