"""A passphrase of a file, of a person, or none."""

import getpass
from pathlib import Path

import pytest

from foundation.errors import FedpretextError
from foundation.passphrase import ASK, passphrase


def typed(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """A person who types these; the list fills with what they were asked."""
    asked: list[str] = []
    coming = iter(answers)

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return next(coming)

    monkeypatch.setattr(getpass, "getpass", ask)
    return asked


def test_without_a_source_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = typed(monkeypatch)
    assert passphrase(None, "the key") is None
    assert passphrase(None, "the key", new=True) is None
    assert asked == []


def test_a_files_passphrase_is_without_the_end_of_its_line(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b" correct horse \r\n")
    assert passphrase(str(path), "the key", new=True) == b" correct horse "


def test_a_new_passphrase_is_typed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = typed(monkeypatch, "correct horse", "correct horse", "correct horse")
    assert passphrase(ASK, "the key", new=True) == b"correct horse"
    assert passphrase(ASK, "the key") == b"correct horse"
    assert asked == ["Passphrase of the key: ", "The same again: ", "Passphrase of the key: "]


def test_what_cannot_be_taken_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FedpretextError, match=r"the passphrase of the key cannot be read \(No such file"):
        passphrase(str(tmp_path / "absent"), "the key")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(FedpretextError, match="the passphrase of the key is empty"):
        passphrase(str(tmp_path / "empty"), "the key")
    typed(monkeypatch, "correct horse", "correct house")
    with pytest.raises(FedpretextError, match="the two passphrases differ; nothing was written"):
        passphrase(ASK, "the key", new=True)
