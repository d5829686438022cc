"""The kit a hospital gets: addresses that can be reached, and a folder that is whole."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.keys.certificates import ca_certificate, certificate_pem, new_key
from federation.keys.kit import Kit, host_and_port, kit_ca, read_kit, write_kit
from federation.study import load_study, study_from
from foundation.errors import FedpretextError

LABELS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", fullmatch=True)
NAMES = (
    st.lists(LABELS, min_size=1, max_size=4).map(".".join).filter(lambda name: not name.rpartition(".")[2].isdigit())
)
PORTS = st.integers(1, 65535)


@given(host=NAMES.filter(lambda name: len(name) <= 253), port=PORTS)
def test_names_are_addresses(host: str, port: int) -> None:
    assert host_and_port(f"{host}:{port}") == (host, port)


@given(address=st.ip_addresses().filter(lambda address: not address.is_unspecified), port=PORTS)
def test_numbers_are_addresses(address: Any, port: int) -> None:
    text = str(address)
    assert host_and_port(f"[{text}]:{port}" if address.version == 6 else f"{text}:{port}") == (text, port)


@given(st.one_of(st.text(), st.from_regex(r"[a-z0-9.:\[\]-]{0,20}:[0-9]{1,6}\n?", fullmatch=True)))
def test_whatever_else_is_said_is_refused_in_one_line(text: str) -> None:
    try:
        host, port = host_and_port(text)
    except ValueError as error:
        assert repr(text) in str(error)
    else:
        assert text in (f"{host}:{text.rpartition(':')[2]}", f"[{host}]:{text.rpartition(':')[2]}")
        assert 1 <= port <= 65535


@pytest.mark.parametrize(
    "address",
    [
        "fl.example.org", "fl.example.org:", ":8443", "fl.example.org:0", "fl.example.org:65536", "fl.example.org:84x",
        "https://fl.example.org:8443", "fl.example.org:8443/", "fl example.org:8443", "-fl.example.org:8443",
        "fl-.example.org:8443", "fl..example.org:8443", "fl.example.org.:8443", "*.example.org:8443", "fl_1:8443",
        "256.0.0.1:8443", "1.2.3:8443", "::1:8443", "[::1:8443", "[fe80::1%eth0]:8443", "[127.0.0.1]:8443",
        "klinik-\u00fc.de:8443", "fl.example.org:\u0668443", f"{'a' * 64}:8443", f"{'a.' * 126}ab:8443",
    ],
)  # fmt: skip
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"is no HOST:PORT; write for example fl\.example\.org:8443"):
        host_and_port(address)


@pytest.mark.parametrize("address", ["0.0.0.0:8443", "[::]:8443"])
def test_every_interface_is_no_address_for_a_site(address: str) -> None:
    with pytest.raises(ValueError, match="stands for every interface"):
        host_and_port(address)


@pytest.fixture
def kit(tmp_path: Path, raw_study: dict[str, Any]) -> Path:
    """The kit of site north."""
    study = study_from(raw_study, "test")
    about = Kit(site="north", federation="tiny", server="localhost:8443", study=study.training_hash())
    write_kit(tmp_path / "kit-north", about, study.to_yaml(), ca_certificate(new_key(), "tiny", datetime.now(UTC), 9))
    return tmp_path / "kit-north"


def test_a_kit_is_read_as_it_was_written(kit: Path) -> None:
    read = read_kit(kit)
    assert (read.site, read.federation, read.server) == ("north", "tiny", "localhost:8443")
    assert load_study(kit / "study.yaml").training_hash() == read.study
    assert (kit / "ca.crt").read_text() == certificate_pem(kit_ca(kit))
    assert sorted(path.name for path in kit.iterdir()) == ["README.txt", "ca.crt", "kit.yaml", "study.yaml"]
    answer = (kit / "README.txt").read_text()
    assert "north" in answer
    assert "localhost:8443" in answer
    assert max(map(len, answer.splitlines())) <= 80


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("kit.yaml", None, None, "is no kit (there is no kit.yaml); give the folder that the study lead sent"),
        ("ca.crt", None, None, "ca.crt: cannot be read; ask the study lead for the kit again"),
        ("study.yaml", None, None, "study.yaml: is missing; ask the study lead for the kit again"),
        ("ca.crt", "BEGIN", "BEGUN", "ca.crt: holds no certificate that can be read"),
        ("study.yaml", "seed: 0", "seed: 1", "study.yaml: is not the study that kit.yaml names"),
        ("kit.yaml", "localhost:8443", "localhost", "server: 'localhost' is no HOST:PORT"),
        ("kit.yaml", "site: north", "site: ../north", "site: String should match pattern"),
        ("kit.yaml", "site:", "sight:", "key 'sight' is not known; did you mean 'site'?"),
    ],
)
def test_a_kit_that_is_not_whole_is_refused(kit: Path, file: str, old: str | None, new: str | None, said: str) -> None:
    if old is None or new is None:
        (kit / file).unlink()
    else:
        text = (kit / file).read_text()
        assert old in text
        (kit / file).write_text(text.replace(old, new))
    with pytest.raises(FedpretextError) as caught:
        read_kit(kit)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
