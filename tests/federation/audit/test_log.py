"""Whatever is done to rows that another party has acknowledged is found by it; a log that just goes on never is."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.audit import chain
from federation.audit.check import cross_check
from federation.audit.log import NOTHING, AuditHead, AuditLog, Extension, VerifiedLog, verify
from foundation.errors import RunError

ROOT = Path(__file__).resolve().parents[3]
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True, scope="module")
def disk_without_sync() -> Iterator[None]:
    """Waiting for the disk is most of the time here, and tells nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("federation.audit.log.os.fsync", lambda handle: None)
        yield


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.jsonl", "a")


def rows_of(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: Rows) -> None:
    path.write_bytes(b"".join(chain.canonical(row) + b"\n" for row in rows))


def forged(rows: Rows) -> Rows:
    """The rows numbered and chained anew, as somebody does who knows how."""
    made: Rows = []
    previous = 64 * "0"
    for number, row in enumerate(rows, 1):
        row = {**row, "n": number, "previous": previous}
        previous = chain.link(previous, chain.row_digest(row))
        made.append(row | {"hash": previous})
    return made


def filled(path: Path, count: int, party: str = "a") -> AuditLog:
    """A log of ``count`` rows."""
    log = AuditLog(path, party)
    for number in range(2, count + 1):
        log.append("update released", round=number)
    return log


def test_a_row_and_its_hash_by_hand(log: AuditLog) -> None:
    head = log.append("update released", round=3, bytes=12, study="f00")
    opened, row = rows_of(log.path)
    assert (opened["n"], opened["event"], opened["by"], opened["previous"]) == (1, "log opened", "a", "0" * 64)
    assert len(opened["salt"]) == len(row["salt"]) == 32
    assert opened["salt"] != row["salt"]
    line = (
        f'{{"by":"a","bytes":12,"event":"update released","n":2,"round":3,"salt":"{row["salt"]}","study":"f00",'
        f'"time":"{row["time"]}"}}'
    )
    digest = hashlib.sha256(line.encode()).digest()
    assert row["previous"] == opened["hash"]
    assert row["hash"] == hashlib.sha256(bytes.fromhex(opened["hash"]) + digest).hexdigest()
    assert head == log.head() == AuditHead(2, row["hash"])
    assert row["time"][10:11] + row["time"][19:] == "T+00:00"


def test_two_logs_of_one_party_differ_from_the_first_row(tmp_path: Path) -> None:
    assert AuditLog(tmp_path / "1", "a").head() != AuditLog(tmp_path / "2", "a").head()


def test_opening_again_writes_nothing(log: AuditLog) -> None:
    before = log.path.read_bytes()
    assert AuditLog(log.path, "a").head() == log.head()
    assert log.path.read_bytes() == before


def test_only_its_owner_reads_a_log(log: AuditLog) -> None:
    assert log.path.stat().st_mode & 0o777 == 0o600


values = st.one_of(st.text(), st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False))
fields = st.dictionaries(st.text().filter(lambda name: name not in {*chain.OWN_FIELDS, "self"}), values, max_size=4)


@given(st.lists(fields, min_size=1, max_size=5))
def test_odd_text_and_numbers_survive(tmp_path_factory: pytest.TempPathFactory, said: list[dict[str, Any]]) -> None:
    log = AuditLog(tmp_path_factory.mktemp("odd") / "audit.jsonl", "a")
    for each in said:
        log.append("request refused", **each)
    found: Rows = []
    verdict = verify(log.path, found.append)
    assert (verdict.head, verdict.fault) == (log.head(), "")
    assert [{name: row[name] for name in each} for each, row in zip(said, found[1:], strict=True)] == said


def test_a_line_end_or_a_surrogate_in_a_field_stays_one_line(log: AuditLog) -> None:
    text = 'line\nbreak\r\u2028"quoted"\x00\ud800 \U0001f3e5'
    log.append("study approved", reason=text)
    assert log.path.read_bytes().count(b"\n") == 2
    assert rows_of(log.path)[1]["reason"] == text


@pytest.mark.parametrize(
    "wrong", [{"hash": "x"}, {"n": 3}, {"by": "b"}, {"sites": ["a"]}, {"loss": None}, {"loss": float("nan")}], ids=str
)
def test_a_field_that_a_row_cannot_have_is_not_written(log: AuditLog, wrong: dict[str, Any]) -> None:
    before = log.path.read_bytes()
    with pytest.raises(ValueError, match=r"(field '\w+' of an audit row is not a field)|(not JSON compliant)"):
        log.append("request refused", **wrong)
    assert log.path.read_bytes() == before


def test_a_row_of_many_blocks(log: AuditLog) -> None:
    log.append("study approved", reason="x" * 50_000)
    log.append("request refused", reason="y" * 8192)
    assert log.append("request refused") == verify(log.path).head
    assert len(log.extension(AuditHead(1, rows_of(log.path)[0]["hash"])).digests) == 3


def test_appending_reads_the_end_of_a_log_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = filled(tmp_path / "audit.jsonl", 1000)
    read = 0
    pread = os.pread

    def counting(handle: int, count: int, offset: int) -> bytes:
        nonlocal read
        read += count
        return pread(handle, count, offset)

    monkeypatch.setattr(chain.os, "pread", counting)
    log.append("update released", round=1)
    assert log.path.stat().st_size > 250_000
    assert 0 < read < 50_000


def test_a_row_is_on_the_disk_before_its_head_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("federation.audit.log.os.fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    log = AuditLog(tmp_path / "audit.jsonl", "a")
    file = log.path.stat().st_ino
    assert synced == [file, tmp_path.stat().st_ino], "the first row, and the folder that now has the file"
    log.append("update released")
    assert synced[2:] == [file]


@given(cut=st.integers(1, 300))
def test_a_torn_last_line_is_cut_off_by_the_next_append(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "audit.jsonl"
    log = filled(path, 4)
    head = log.head()
    log.append("round failed", category="disk-full")
    data = path.read_bytes()
    last = len(data) - data[:-1].rfind(b"\n") - 1
    path.write_bytes(data[: -min(cut, last)])
    torn = min(cut, last) < last
    verdict = verify(path)
    assert (verdict.head, verdict.fault, verdict.torn) == (head, "", torn)
    assert log.head() == head
    assert log.extension(head) == Extension(head)
    assert log.append("update released").count == 5
    assert verify(path) == VerifiedLog(path, "a", log.head())
    assert log.extension(head).follows(head)


def test_a_torn_line_is_told(log: AuditLog) -> None:
    with log.path.open("ab") as file:
        file.write(b'{"by":"a","ev')
    head = log.head().hash[:12]
    said = f"chain is whole: 1 row, head {head}; a last line that was not written to its end does not count"
    assert verify(log.path).line == said


def test_a_file_of_which_nothing_was_written_yet_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"by')
    assert verify(path).line.startswith("chain is whole: 0 rows, head none; a last line")
    assert AuditLog(path, "a").head().count == 1
    assert [row["event"] for row in rows_of(path)] == ["log opened"]


APPENDING = """
import sys
from pathlib import Path
from federation.audit.log import AuditLog
log = AuditLog(Path(sys.argv[1]), "a")
for number in range(int(sys.argv[2])):
    print(log.append("update released", round=number, text="x" * 3000).count, flush=True)
"""


def start_appending(path: Path, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", APPENDING, str(path), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_writer_killed_at_any_moment_leaves_a_whole_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    acknowledged = 0
    for attempt in range(4):
        writer = start_appending(path, 1_000_000)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.013 * (attempt + 1))
        writer.send_signal(signal.SIGKILL)
        said, _ = writer.communicate()
        answer = [int(line) for line in said.splitlines(keepends=True) if line.endswith("\n")]
        acknowledged = max([acknowledged, *answer])
        verdict = verify(path)
        assert verdict.fault == ""
        assert verdict.head.count >= acknowledged > attempt


def test_processes_and_threads_append_to_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    writers = [start_appending(path, 60) for _ in range(2)]
    log = AuditLog(path, "a")
    threads = [threading.Thread(target=lambda: [log.append("update released") for _ in range(60)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answer = [int(line) for writer in writers for line in writer.communicate()[0].splitlines()]
    assert [writer.returncode for writer in writers] == [0, 0]
    verdict = verify(path)
    assert (verdict.head.count, verdict.fault, verdict.torn) == (1 + 4 * 60, "", False)
    assert len(set(answer)) == 2 * 60


def test_a_disk_that_is_full_leaves_the_chain_as_it_was(log: AuditLog) -> None:
    """The system itself refuses: the first part of the row is written, the rest is not."""
    head, size = log.head(), log.path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
    try:
        with pytest.raises(RunError) as caught:
            log.append("update released", round=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    why = "could not be written (File too large); free space or permit writing, then start again"
    assert str(caught.value) == f"{log.path}: {why}"
    assert isinstance(caught.value.__cause__, OSError)
    assert log.path.stat().st_size == size
    assert log.head() == head
    assert log.append("update released", round=1).count == 2


def test_a_row_that_the_disk_did_not_take_is_taken_back(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    before = log.path.read_bytes()

    def fails(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("federation.audit.log.os.fsync", fails)
    with pytest.raises(RunError, match=r"could not be written \(No space left on device\)"):
        log.append("update released")
    assert log.path.read_bytes() == before


def test_the_log_of_another_party_is_not_written_to(log: AuditLog) -> None:
    before = log.path.read_bytes()
    with pytest.raises(RunError, match=r"is the audit log of 'a', not of 'b'; keep the file .* accept the restart$"):
        AuditLog(log.path, "b")
    assert log.path.read_bytes() == before


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"n":1}', b"\xff", b"[" * 100_000], ids=range(6))
def test_a_last_row_that_is_none_is_named(log: AuditLog, line: bytes) -> None:
    with log.path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(RunError, match="has a row that no log writes; keep the file as evidence"):
        log.append("update released")
    verdict = verify(log.path)
    assert verdict.line == "chain is broken at row 2: it is not a row that a log writes"
    assert verdict.head.count == 1


def test_a_missing_log_is_named(tmp_path: Path, log: AuditLog) -> None:
    with pytest.raises(RunError, match=r"none: is missing$"):
        verify(tmp_path / "none")
    log.path.unlink()
    with pytest.raises(RunError, match=r"audit.jsonl: is missing$"):
        log.head()


def swap(rows: Rows, at: int) -> Rows:
    return [*rows[: at - 1], rows[at], rows[at - 1], *rows[at + 1 :]]


def inserted(rows: Rows, at: int) -> Rows:
    return [*rows[: at - 1], rows[at - 1] | {"salt": "0" * 32}, *rows[at - 1 :]]


CHANGES: dict[str, Callable[[Rows, int], Rows]] = {
    "change": lambda rows, at: [*rows[: at - 1], rows[at - 1] | {"round": 999}, *rows[at:]],
    "add a field": lambda rows, at: [*rows[: at - 1], rows[at - 1] | {"more": ""}, *rows[at:]],
    "delete": lambda rows, at: [*rows[: at - 1], *rows[at:]],
    "insert": inserted,
    "swap": swap,
    "party": lambda rows, at: [*rows[: at - 1], rows[at - 1] | {"by": "b"}, *rows[at:]],
}
WHY = {
    "change": "its content was changed",
    "add a field": "its content was changed",
    "delete": "it says that it is row 4",
    "insert": "its content was changed",
    "swap": "it says that it is row 4",
    "party": "its content was changed",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_row_is_named(tmp_path: Path, change: str) -> None:
    log = filled(tmp_path / "audit.jsonl", 6)
    write_rows(log.path, CHANGES[change](rows_of(log.path), 3))
    assert verify(log.path).line == f"chain is broken at row 3: {WHY[change]}"


def test_rows_of_another_chain_are_named(tmp_path: Path) -> None:
    one, other = filled(tmp_path / "1", 5), filled(tmp_path / "2", 5)
    write_rows(one.path, rows_of(one.path)[:3] + rows_of(other.path)[3:])
    assert verify(one.path).line == "chain is broken at row 4: it does not belong after the row before"


def test_a_second_party_in_a_chain_is_named(tmp_path: Path) -> None:
    log = filled(tmp_path / "audit.jsonl", 4)
    write_rows(log.path, forged(CHANGES["party"](rows_of(log.path), 3)))
    assert verify(log.path).line == "chain is broken at row 3: it is of 'b', the rows before are of 'a'"


@pytest.mark.parametrize("spelt", [b', "n"', b',"n"'])
def test_a_row_has_one_spelling(tmp_path: Path, spelt: bytes) -> None:
    log = filled(tmp_path / "audit.jsonl", 3)
    log.path.write_bytes(log.path.read_bytes().replace(b',"n"', spelt))
    assert bool(verify(log.path).fault) == (spelt == b', "n"')


@given(st.data())
def test_no_byte_can_be_changed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    log = filled(tmp_path_factory.mktemp("byte") / "audit.jsonl", 3)
    content = bytearray(log.path.read_bytes())
    ends = [number for number, byte in enumerate(content) if byte == 10]
    at = data.draw(st.integers(0, len(content) - 2))
    content[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
    log.path.write_bytes(content)
    verdict = verify(log.path)
    assert verdict.fault
    assert verdict.head.count <= sum(end < at for end in ends)


def test_an_extension_by_hand() -> None:
    start, row = "11" * 32, "22" * 32
    end = hashlib.sha256(bytes.fromhex(start + row)).hexdigest()
    known = AuditHead(4, start)
    assert Extension(AuditHead(5, end), [row]).follows(known)
    assert Extension(AuditHead(5, end), ["33" * 32, row]).follows(known), "older digests may come first"
    assert Extension(known).follows(known)
    assert Extension(AuditHead(5, end)).follows(NOTHING)
    refused = [
        Extension(AuditHead(5, end)),
        Extension(AuditHead(6, end), [row]),
        Extension(AuditHead(4, end), [row]),
        Extension(AuditHead(3, start)),
        Extension(AuditHead(5, start), [row]),
        Extension(AuditHead(5, end), [row, "33" * 32]),
        Extension(NOTHING),
    ]
    assert not any(extension.follows(known) for extension in refused)


@pytest.mark.parametrize(
    "head", [(0, "11" * 32), (-1, "11" * 32), (1, ""), (1, "11" * 31), (1, "AA" * 32), (1, "11" * 32 + "\n")]
)
def test_a_head_that_is_none_is_refused(head: tuple[int, str]) -> None:
    with pytest.raises(RunError, match="is not a count and 64 hex digits"):
        AuditHead(*head)


def test_a_proof_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="holds what is not 64 hex digits"):
        Extension(NOTHING, ["11" * 32, "11" * 31 + " 1"])
    monkeypatch.setattr(chain, "MOST_DIGESTS", 2)
    with pytest.raises(RunError, match="has 3 digests; a log gives 2 at most"):
        Extension(NOTHING, ["11" * 32] * 3)


def exchange(sender: AuditLog, receiver: AuditLog, since: AuditHead | None = None) -> None:
    """One message: by default the sender knows what the receiver holds."""
    known = receiver.known(sender.party) if since is None else since
    receiver.receive(sender.party, sender.extension(known))


def test_heads_are_held_in_the_own_chain(tmp_path: Path, log: AuditLog) -> None:
    server = AuditLog(tmp_path / "server.jsonl", "server")
    assert server.known("a") == NOTHING
    exchange(log, server)
    head = log.head()
    assert server.known("a") == AuditLog(server.path, "server").known("a") == head
    row = rows_of(server.path)[-1]
    assert (row["event"], row["party"], row["count"], row["head"]) == ("head received", "a", 1, head.hash)
    exchange(log, server)
    assert server.head().count == 2, "the same head again is no news"


def test_known_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = filled(tmp_path / "server.jsonl", 50, "server")
    server.known("a")
    starts: list[int] = []
    lines = chain.lines

    def watched(handle: int, start: int, end: int) -> Iterator[bytes]:
        starts.append(start)
        return lines(handle, start, end)

    monkeypatch.setattr(chain, "lines", watched)
    size = server.path.stat().st_size
    exchange(AuditLog(tmp_path / "a.jsonl", "a"), AuditLog(server.path, "server"))  # as another process would
    starts.clear()
    assert server.known("a").count == 1
    assert starts == [size]


def test_a_log_that_was_put_back_is_read_anew(tmp_path: Path, log: AuditLog) -> None:
    server = AuditLog(tmp_path / "server.jsonl", "server")
    shutil.copy(server.path, tmp_path / "backup")
    exchange(log, server)
    assert server.known("a") == log.head()
    shutil.copy(tmp_path / "backup", server.path)
    assert server.known("a") == NOTHING
    (tmp_path / "backup").replace(server.path)
    assert server.known("a") == NOTHING


def test_a_long_absence_is_caught_up_message_by_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "MOST_DIGESTS", 4)
    site, server = AuditLog(tmp_path / "a", "a"), AuditLog(tmp_path / "server", "server")
    exchange(site, server)
    filled(site.path, 10)
    counts = []
    for _ in range(4):
        exchange(site, server)
        counts.append(server.known("a").count)
    assert counts == [5, 9, 10, 10]
    extension = site.extension(NOTHING)
    assert (extension.head, len(extension.digests)) == (site.head(), 4), "of an unknown reader: the newest"


def test_a_sender_that_forgot_what_is_held_proves_it_all(tmp_path: Path) -> None:
    """A server that was killed after its first instruction does not know that the site has its head."""
    site, server = AuditLog(tmp_path / "a", "a"), AuditLog(tmp_path / "server", "server")
    exchange(server, site)
    server.append("instruction sent", site="a", round=1)
    exchange(server, site, since=NOTHING)
    assert site.known("server") == server.head()


class Pair:
    """Two parties that send each other messages, some of which are lost."""

    def __init__(self, folder: Path) -> None:
        self.logs = [AuditLog(folder / "server.jsonl", "server"), AuditLog(folder / "a.jsonl", "a")]
        self.answer = [NOTHING, NOTHING]  # what each was last told that the other holds of it

    def act(self, who: int, what: str) -> None:
        own, other = self.logs[who], self.logs[1 - who]
        if what == "write":
            own.append("round failed", category="disk-full")
        elif what == "reopen":
            self.logs[who] = AuditLog(own.path, own.party)
            self.answer[who] = NOTHING
        else:
            extension, known = own.extension(self.answer[who]), own.known(other.party)
            if what == "send":
                other.receive(own.party, extension)
                self.answer[1 - who] = known


steps = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["write", "send", "lose", "reopen"])), max_size=25)


@given(steps)
def test_a_log_that_goes_on_is_never_refused(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[int, str]]
) -> None:
    pair = Pair(tmp_path_factory.mktemp("pair"))
    for who, what in acts:
        pair.act(who, what)
    agreement = cross_check(*(log.path for log in pair.logs))
    assert agreement.faults == []
    sent = sum(row["event"] == "head received" for log in pair.logs for row in rows_of(log.path))
    assert agreement.audit_heads == sent


FORGERIES = {name: change for name, change in CHANGES.items() if name != "party"}


@given(st.data())
def test_whatever_is_done_to_acknowledged_rows_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Change, insert, delete or swap with all hashes computed anew; cut the tail; put a backup back, and write on."""
    folder = tmp_path_factory.mktemp("forged")
    count = data.draw(st.integers(3, 12), label="rows that the server has acknowledged")
    site, server = filled(folder / "a.jsonl", 2), AuditLog(folder / "server.jsonl", "server")
    for number in range(3, count + 1):
        site.append("update released", round=number)
        if data.draw(st.booleans()):
            exchange(site, server)
    exchange(site, server)
    exchange(server, site)  # the site acknowledges what the server wrote about it; this row is not acknowledged
    for number in range(data.draw(st.integers(0, 3), label="rows after")):
        site.append("update released", round=number)
    known, rows = server.known("a"), rows_of(site.path)
    how = data.draw(st.sampled_from(["cut", *FORGERIES]), label="how")
    at = data.draw(st.integers(1, count - 1), label="at")
    made = rows[:at] if how == "cut" else forged(FORGERIES[how](rows, at))
    first_wrong = at + 1 if how == "cut" else at
    write_rows(site.path, made)
    for number in range(data.draw(st.integers(0, 12), label="written since")):
        AuditLog(site.path, "a").append("update released", round=number)

    assert verify(site.path).fault == "", "the chain itself is sound: only the server can tell"
    with pytest.raises(RunError, match=rf"holds the head of row {known.count}, which is not in this log: it was rewri"):
        AuditLog(site.path, "a").extension(known)
    forger = AuditLog(site.path, "a").extension(NOTHING)
    assert not forger.follows(known)
    with pytest.raises(RunError, match=rf"log of a does not go on from its row {known.count}, which is known here"):
        server.receive("a", forger)
    assert server.known("a") == known
    refusal = rows_of(server.path)[-1]
    assert (refusal["event"], refusal["count"], refusal["head"]) == ("head refused", *vars(forger.head).values())

    (fault,) = cross_check(site.path, server.path).faults
    assert fault.startswith(f"{site.path}: was rewritten, cut or restored, from row ")
    earliest = int(fault.split("from row ")[1].split()[0])
    held = [row["count"] for row in rows_of(server.path) if row["event"] == "head received"]
    assert earliest == max([0, *(number for number in held if number < first_wrong)]) + 1 <= first_wrong


def test_a_backup_of_the_server_is_found_by_its_site(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    server, site = pair.logs
    for _ in range(3):
        exchange(server, site)
        exchange(site, server)
    shutil.copy(server.path, tmp_path / "backup")
    server.append("round aggregated", round=3)
    exchange(server, site)
    (tmp_path / "backup").replace(server.path)
    for number in range(5):
        server.append("round aggregated", round=number)
    with pytest.raises(RunError, match="the audit log of server does not go on from its row 5, which is known here"):
        site.receive("server", server.extension(NOTHING))
    (fault,) = cross_check(server.path, site.path).faults
    assert fault == (
        f"{server.path}: was rewritten, cut or restored, from row 4 at the earliest: row 5 is not the one whose head "
        f"{site.path} holds in row 5, if that one is true"
    )


def test_a_restart_is_taken_only_when_a_person_accepts_it(tmp_path: Path) -> None:
    site, server = filled(tmp_path / "a.jsonl", 5), AuditLog(tmp_path / "server.jsonl", "server")
    exchange(site, server)
    site.path.unlink()  # the disk died
    fresh = AuditLog(site.path, "a")
    with pytest.raises(RunError, match="If its disk died, accept the restart"):
        server.receive("a", fresh.extension(NOTHING))
    server.accept_restart("a", "disk died, telephoned with Dr. Weiß")
    assert server.known("a") == NOTHING
    exchange(fresh, server)
    assert server.known("a") == fresh.head()
    assert [row["reason"] for row in rows_of(server.path) if row["event"] == "chain restart accepted"] == [
        "disk died, telephoned with Dr. Weiß"
    ]
    assert cross_check(fresh.path, server.path).faults == []
    assert cross_check(fresh.path, server.path).audit_heads == 1, "heads of the lost log are not compared"


@pytest.mark.parametrize(("party", "hint"), [("site-b", "; did you mean 'site-a'?"), ("xyz", "")])
def test_a_restart_of_nobody_is_refused(tmp_path: Path, party: str, hint: str) -> None:
    server = AuditLog(tmp_path / "server.jsonl", "server")
    exchange(AuditLog(tmp_path / "a.jsonl", "site-a"), server)
    with pytest.raises(RunError) as caught:
        server.accept_restart(party, "a mistake")
    assert str(caught.value) == f"{server.path}: holds no head of a log of {party!r}{hint}"
    server.accept_restart("site-a", "disk died")
    with pytest.raises(RunError, match="holds no head of a log of 'site-a'"):
        server.accept_restart("site-a", "again")


def talked(folder: Path, rounds: int = 3) -> tuple[AuditLog, AuditLog]:
    """A server and a site with three rows a round each: 'wrote', 'received'."""
    server, site = Pair(folder).logs
    for number in range(1, rounds + 1):
        server.append("instruction sent", round=number)
        exchange(server, site)
        site.append("update released", round=number)
        exchange(site, server)
    return server, site


def test_an_edited_row_is_found_with_and_without_the_other_log(tmp_path: Path) -> None:
    server, site = talked(tmp_path)
    assert cross_check(server.path, site.path).audit_heads == 6
    write_rows(site.path, CHANGES["change"](rows_of(site.path), 5))
    assert cross_check(server.path, site.path).faults == [
        f"{site.path}: chain is broken at row 5: its content was changed",
        f"{site.path}: was rewritten, cut or restored, from row 4 at the earliest: row 5 is not the one whose head "
        f"{server.path} holds in row 5, if that one is true",
    ]


def test_who_acknowledged_that_its_head_is_held_cannot_deny_it(tmp_path: Path) -> None:
    server, site = talked(tmp_path)
    write_rows(site.path, forged(CHANGES["change"](rows_of(site.path), 5)))
    assert cross_check(server.path, site.path).faults == [
        f"{site.path}: was rewritten, cut or restored, from row 4 at the earliest: row 5 is not the one whose head "
        f"{server.path} holds in row 5"
    ]


def test_a_false_head_does_not_convict_the_other_party(tmp_path: Path) -> None:
    """Who makes up a head of the other's log can say so only in rows that the other has never acknowledged."""
    server, site = talked(tmp_path)
    server.append("head received", party="a", count=3, head="11" * 32)
    (fault,) = cross_check(server.path, site.path).faults
    assert fault.endswith(f"holds in row {server.head().count}, if that one is true")


def test_logs_that_cannot_be_compared(tmp_path: Path, log: AuditLog) -> None:
    other = AuditLog(tmp_path / "other.jsonl", "a")
    with pytest.raises(RunError, match="are both logs of 'a'; give those of two parties"):
        cross_check(log.path, other.path)
    other.path.write_bytes(b"")
    with pytest.raises(RunError, match=r"has no row that could be compared; chain is whole: 0 rows, head none$"):
        cross_check(log.path, other.path)


def test_strangers_hold_no_heads_of_each_other(tmp_path: Path, log: AuditLog) -> None:
    agreement = cross_check(log.path, AuditLog(tmp_path / "b.jsonl", "b").path)
    assert (agreement.audit_heads, agreement.faults) == (0, [])


def test_a_note_is_on_the_disk_before_anything_is_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other parties are told of must outlive a power cut; what nobody is told of may wait."""
    log = AuditLog(tmp_path / "log", "a")
    log.append("server started")
    real, synced = os.fsync, []

    def watched(handle: int) -> None:
        synced.append(handle)
        real(handle)

    monkeypatch.setattr(os, "fsync", watched)
    head = log.note("run started")
    assert synced == []
    assert log.extension(NOTHING).head == head
    assert len(synced) == 1
