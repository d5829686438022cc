"""A key comes from one named place outside what it locks, whole and unseen by others, or not at all."""

import base64
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from federation.keys import key_source
from federation.keys.key_source import KeySource, new_key_text, open_vault
from foundation.configuration.yaml_files import checked
from foundation.errors import StudyError
from foundation.vault import PLAIN, Vault

KEY = bytes(range(100, 132))


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(StudyError) as caught:
        act()
    said = str(caught.value)
    assert "\n" not in said
    assert KEY.hex() not in said
    return said


def key_file(path: Path, content: bytes = KEY, mode: int = 0o600) -> KeySource:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return KeySource(file=path)


def printing(text: str, *more: str) -> KeySource:
    return KeySource(command=(sys.executable, "-c", f"print({text!r})", *more))


@pytest.fixture
def opens(tmp_path: Path) -> Callable[[Vault], bool]:
    """Whether a vault has ``KEY``."""
    Vault(KEY).write_bytes(tmp_path / "sealed", b"text")
    return lambda vault: vault.read_bytes(tmp_path / "sealed") == b"text"


def test_no_source_is_no_encryption(tmp_path: Path) -> None:
    assert open_vault(None, [tmp_path]) is PLAIN


@pytest.mark.parametrize(
    "content", [KEY, KEY.hex().encode(), KEY.hex().upper().encode() + b"\r\n", b" " + KEY.hex().encode() + b"\n\n"]
)
def test_a_file_holds_bytes_or_hex_digits(tmp_path: Path, content: bytes, opens: Callable[[Vault], bool]) -> None:
    assert opens(open_vault(key_file(tmp_path / "secrets" / "key", content), [tmp_path / "state"]))


@pytest.mark.parametrize(
    "content",
    [
        b"", KEY[:31], KEY + b"\n", KEY.hex()[:32].encode(), b"correct horse battery staple 123", bytes(32),
        KEY.hex().encode() + b"0", KEY.hex().encode()[:63], KEY.hex().encode()[:62] + b"  ",
        b"g" + KEY.hex().encode()[1:], base64.b64encode(KEY), b"x" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """Also half a key in hex digits and a pass phrase, which have 32 bytes."""
    source = key_file(tmp_path / "key", content)
    assert refused(lambda: open_vault(source, [])) == (
        f"{tmp_path / 'key'}: holds {min(len(content), 1024)} bytes that are no key; "
        f"it takes 32 random bytes or 64 hex digits"
    )


BESIDE = (
    "and a key beside what it locks protects nothing; "
    "keep it on another disk, in a systemd credential, or behind a command"
)


@pytest.mark.parametrize("place", ["state/key", "state/deep/down/key", "state/../state/key", "link", "door/key"])
def test_a_key_beside_what_it_locks_is_refused(tmp_path: Path, place: str) -> None:
    """Whichever way leads to it: a path with dots, a link to the key, a link to the folder."""
    state = tmp_path / "state"
    key_file(state / "key")
    key_file(state / "deep" / "down" / "key")
    (tmp_path / "link").symlink_to(state / "key")
    (tmp_path / "door").symlink_to(state)
    source = KeySource(file=tmp_path / place)
    other = tmp_path / "other"
    assert refused(lambda: open_vault(source, [other, state])) == f"{tmp_path / place}: lies in {state}, {BESIDE}"
    open_vault(source, [other])


def test_a_guarded_folder_behind_a_link_is_the_same_folder(tmp_path: Path) -> None:
    source = key_file(tmp_path / "disk" / "key")
    (tmp_path / "state").symlink_to(tmp_path / "disk")
    assert "protects nothing" in refused(lambda: open_vault(source, [tmp_path / "state"]))


def test_a_folder_whose_name_only_begins_alike_is_another(tmp_path: Path, opens: Callable[[Vault], bool]) -> None:
    assert opens(open_vault(key_file(tmp_path / "state-key" / "key"), [tmp_path / "state"]))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o611])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    source = key_file(path, mode=mode)
    assert refused(lambda: open_vault(source, [])) == (
        f"{path}: others than its owner may use the key (mode {mode:04o}); run: chmod 600 {path}"
    )
    path.chmod(0o400)
    open_vault(source, [])


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert refused(lambda: open_vault(KeySource(file=gone), [])) == (
        f"{gone}: there is no such key file; mount it, or correct the key's place"
    )
    assert refused(lambda: open_vault(KeySource(file=tmp_path), [])) == (
        f"{tmp_path}: is not a file; name the file that holds the key"
    )
    key_file(tmp_path / "key")
    below = KeySource(file=tmp_path / "key" / "below")
    assert "below: the key cannot be read (Not a directory)" in refused(lambda: open_vault(below, []))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "pipe: is not a file" in refused(lambda: open_vault(KeySource(file=tmp_path / "pipe"), []))


def test_a_credential_is_read_from_where_systemd_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: Callable[[Vault], bool]
) -> None:
    """Its mode may show the group's rights: systemd gives them to the service's user by an access list."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    key_file(tmp_path / "credentials" / "vault-key", KEY.hex().encode(), mode=0o440)
    assert opens(open_vault(KeySource(credential="vault-key"), [tmp_path / "state"]))
    assert "protects nothing" in refused(lambda: open_vault(KeySource(credential="vault-key"), [tmp_path]))
    assert "credentials/other: there is no such key file" in refused(
        lambda: open_vault(KeySource(credential="other"), [])
    )


@pytest.mark.parametrize("value", [None, ""])
def test_a_credential_outside_a_service_is_told(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    if value is not None:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", value)
    assert refused(lambda: open_vault(KeySource(credential="vault-key"), [])) == (
        "key.credential 'vault-key': CREDENTIALS_DIRECTORY is not set; start as a systemd service "
        "with LoadCredentialEncrypted=vault-key, or name a file or a command"
    )


@pytest.mark.parametrize("text", [KEY.hex(), KEY.hex().upper() + "\n", base64.b64encode(KEY).decode()])
def test_a_command_prints_hex_digits_or_base64(text: str, opens: Callable[[Vault], bool]) -> None:
    assert opens(open_vault(printing(text), []))


def test_a_command_runs_without_a_shell(opens: Callable[[Vault], bool]) -> None:
    shown = "import sys; print(sys.argv[2] if sys.argv[1] == '$(exit 1); `x` *' else '')"
    assert opens(open_vault(KeySource(command=(sys.executable, "-c", shown, "$(exit 1); `x` *", KEY.hex())), []))


@pytest.mark.parametrize(
    "text", ["", KEY.hex()[:-2], "not a key", base64.b64encode(KEY + b"0").decode(), KEY.hex() * 2]
)
def test_a_command_that_prints_no_key_is_told_without_what_it_printed(text: str) -> None:
    assert refused(lambda: open_vault(printing(text), [])) == (
        f"key.command {Path(sys.executable).name!r}: printed {len(text) + 1} bytes that are no key; "
        f"it has to print 64 hex digits, or 32 bytes in base64"
    )


def test_a_command_that_fails_is_told() -> None:
    """Even when it printed a key first."""
    failing = KeySource(command=(sys.executable, "-c", f"print({KEY.hex()!r}); raise SystemExit(3)"))
    assert refused(lambda: open_vault(failing, [])).endswith(": ended with code 3; run it by hand to see why")
    absent = KeySource(command=("/no/such/program",))
    assert refused(lambda: open_vault(absent, [])) == (
        "key.command 'program': cannot be run (No such file or directory); give the program's whole path"
    )
    assert "cannot be run (embedded null byte)" in refused(lambda: open_vault(KeySource(command=("a\0b",)), []))


def test_a_command_that_asks_or_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = KeySource(command=(sys.executable, "-c", "input()"))
    assert "ended with code 1" in refused(lambda: open_vault(asking, []))
    monkeypatch.setattr(key_source, "_COMMAND_S", 0.2)
    hanging = KeySource(command=(sys.executable, "-c", "import time; time.sleep(60)"))
    assert refused(lambda: open_vault(hanging, [])).endswith(
        ": has not ended after 0.2 s; it must print the key without asking anybody"
    )


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "key: file, credential and command: exactly one of them is set"),
        ({"file": "/k", "credential": "k"}, "key: file, credential and command: exactly one of them is set"),
        ({"command": []}, "key: command: "),
        ({"credential": "../../etc/shadow"}, "key: credential: "),
        ({"credential": ".hidden"}, "key: credential: "),
        ({"credential": ""}, "key: credential: "),
        ({"command": "cat /k"}, "key: command: "),
        ({"fle": "/k"}, "key: key 'fle' is not known; did you mean 'file'?"),
    ],
)
def test_a_section_that_names_no_one_source_is_refused(raw: dict[str, Any], said: str) -> None:
    assert refused(lambda: checked(KeySource, raw, "key")).startswith(said)


def test_a_relative_file_is_counted_from_where_it_is_named(tmp_path: Path) -> None:
    assert KeySource(file=Path("a/key")).counted_from(tmp_path).file == tmp_path / "a" / "key"
    assert KeySource(file=Path("/a/key")).counted_from(tmp_path).file == Path("/a/key")
    assert KeySource(credential="k").counted_from(tmp_path) == KeySource(credential="k")


def test_a_new_key_is_taken_and_never_the_same(tmp_path: Path) -> None:
    texts = {new_key_text() for _ in range(20)}
    assert len(texts) == 20
    assert all(len(bytes.fromhex(text)) == 32 for text in texts)
    open_vault(key_file(tmp_path / "key", texts.pop().encode() + b"\n"), [])
