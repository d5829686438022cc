"""The pages in a real browser: no console message, no request, nothing wider than a telephone, in light and dark."""

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from evaluation.many_runs import write_comparison
from evaluation.report import write_report
from evaluation.results import COLUMNS

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
PROBE = """
<script>
const frame = document.createElement("iframe");
frame.style.cssText = "width:400px;height:900px;border:0";
frame.onload = () => {
  const page = frame.contentDocument.documentElement;
  document.title = `width ${page.scrollWidth}; loaded ${frame.contentWindow.performance.getEntriesByType("resource")
    .filter((entry) => !entry.name.startsWith("data:")).length}`;
};
frame.src = "PAGE";
document.body.append(frame);
</script>
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Results of three encoders at five sites with long names, so that every table is wide."""
    rows = [
        {"task": "tumour", "dataset": "LGG", "encoder": encoder, "protocol": "logistic", "label_fraction": share,
         "site": site, "seed": "0", "metric": "AUROC", "value": 0.8, "ci_low": 0.7, "ci_high": 0.9, "n": 40, "note": ""}
        for encoder in ("federated", "random", "alone-A") for share in ("1", "0.1")
        for site in ("all", "site mean", *(f"Hospital-number-{number}" for number in range(5)))
    ]  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(folder / "results.csv", index=False)
    return folder


def opened(page: Path, *more: str) -> tuple[str, str]:
    """The document's title after loading, and what the browser's console said."""
    assert BROWSER is not None
    probe = page.with_name("probe.html")
    probe.write_text(f"<!doctype html><title>not loaded</title><body>{PROBE.replace('PAGE', page.as_uri())}")
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr",
        "--hide-scrollbars", "--virtual-time-budget=5000",
        "--proxy-server=127.0.0.1:9", "--dump-dom", *more, probe.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return (title[1] if title else ""), "\n".join(console)


@pytest.mark.parametrize("scheme", ["1", "0"], ids=["light", "dark"])
def test_the_report_opens_without_a_word_a_request_or_an_overflow(run: Path, scheme: str) -> None:
    title, console = opened(write_report(run), f"--blink-settings=preferredColorScheme={scheme}")
    assert (title, console) == ("width 400; loaded 0", "")


def test_so_does_the_comparison_of_runs(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "a-second-run-with-a-rather-long-name")
    title, console = opened(write_comparison([run, other], tmp_path / "comparison.html"))
    assert (title, console) == ("width 400; loaded 0", "")


def test_the_probe_sees_an_overflow_a_message_and_a_request(run: Path) -> None:
    page = run / "bad.html"
    page.write_text(
        '<div style="width:900px">wide</div><img src="http://127.0.0.1:9/a.png"><script>console.error("said")</script>'
    )
    title, console = opened(page)
    assert title == "width 908; loaded 1"  # the body's margin is 8
    assert "said" in console
