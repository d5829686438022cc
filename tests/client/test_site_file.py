"""The site file: a hospital's own, read strictly."""

from pathlib import Path

import pytest

from client.site_file import load_site_file
from foundation.errors import StudyError

GOOD = "site: North-2\ndata: images/manifest.csv\nstate: /var/state\ncache: ../cache\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "site.yaml"
    path.write_text(text)
    return path


def test_relative_paths_count_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path / "elsewhere")
    site = load_site_file(Path("..") / "site.yaml")
    assert site.site == "North-2"
    assert site.data == tmp_path.resolve() / "images" / "manifest.csv"
    assert site.state == Path("/var/state")
    assert site.cache.resolve() == (tmp_path.parent / "cache").resolve()
    assert site.device == "auto"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "devise: cpu\n", "key 'devise' is not known; did you mean 'device'?"),
        (GOOD.replace("state: /var/state\n", ""), "key 'state' is missing; add it"),
        (GOOD + "device: gpu\n", "device: Input should be 'auto', 'cpu', 'cuda' or 'mps' (got 'gpu')"),
        (GOOD.replace("North-2", "../North"), "site: String should match pattern"),
        (GOOD.replace("North-2", "'A\\n'"), "site: String should match pattern"),
        (GOOD.replace("North-2", "''"), "site: String should match pattern"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(StudyError) as caught:
        load_site_file(write(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path / 'site.yaml'}: ")
    assert said in str(caught.value)
