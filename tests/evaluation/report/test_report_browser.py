"""The pages in a real browser: no console message, no request, nothing wider than a telephone, in light and dark."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from evaluation.report.many_runs import write_comparison
from evaluation.report.page import write_report
from evaluation.statistics.results_schema import COMPARISONS, RESULTS

from ..conftest import role_in

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

VALUES = {
    "federated": 0.812,
    "random": 0.673,
    "local-only-A": 0.842,
    "centralised-with-long-name": 0.825,
    "pixels": 0.791,
}
MEASURE = """
<script>
const [width, print] = [WIDTH, PRINT];
const frame = document.createElement("iframe");
frame.style.cssText = `width:${width}px;height:900px;border:0`;
const middle = (element) => { const box = element.getBoundingClientRect(); return (box.left + box.right) / 2; };
frame.onload = () => {
  const page = frame.contentDocument;
  for (const sheet of page.styleSheets) for (const rule of sheet.cssRules)
    if (print && rule instanceof frame.contentWindow.CSSMediaRule && rule.media.mediaText === "print")
      rule.media.mediaText = "all";
  const plots = [...page.querySelectorAll("figure.forest")].map((plot) => ({
    ticks: [...plot.querySelectorAll(".axis text:not(.what)")].map((text) => [text.textContent, middle(text)]),
    zeros: [...plot.querySelectorAll(".strip .ref")].map(middle),
    rows: [...plot.querySelectorAll("tbody tr")].map((row) => ({
      value: row.querySelector(".figure b").textContent, dot: middle(row.querySelector(".dot")),
      interval: row.querySelector(".interval").textContent,
      line: [...row.querySelectorAll(".ci")].map((line) => line.getBoundingClientRect())
        .map((box) => [box.left, box.right]),
    })),
  }));
  document.title = JSON.stringify(plots);
};
frame.src = "PAGE";
document.body.append(frame);
</script>
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Results of three encoders at five sites with long names, so that every table is wide."""
    fixed = {
        "task": "tumour",
        "protocol": "logistic",
        "metric": "AUROC",
        "n": 40,
        "unit": "patient",
        "label_fraction": "1",
    }
    rows = [
        fixed | {"dataset": "LGG", "encoder": encoder, "role": role_in(encoder), "label_fraction": share,
                 "site": site, "seed": "0", "statistic": statistic, "value": value, "ci_low": value - 0.071,
                 "ci_high": value + 0.083}
        for encoder, value in VALUES.items() for share in ("1", "0.1")
        for site, statistic in (
            ("all", "estimate"), ("all", "site mean"), *((f"Hospital-number-{n}", "estimate") for n in range(5))
        )
    ]  # fmt: skip
    apart = [
        fixed | {"site": "all", "encoder_a": "federated", "role_a": "federated", "encoder_b": other,
                 "role_b": role_in(other), "value": VALUES["federated"] - value, "p": 0.2,
                 "ci_low": VALUES["federated"] - value - 0.06, "ci_high": VALUES["federated"] - value + 0.11}
        for other, value in VALUES.items() if other != "federated"
    ]  # fmt: skip
    apart[-1] |= {"ci_low": "", "ci_high": "", "interval": "too few patients to say"}
    folder = tmp_path / "run"
    folder.mkdir()
    RESULTS.write(folder / "results.csv", RESULTS.frame(rows))
    COMPARISONS.write(folder / "comparisons.csv", COMPARISONS.frame(apart))
    return folder


def opened(page: Path, *more: str, script: str = PROBE) -> tuple[str, str]:
    """The document's title after loading, and what the browser's console said."""
    assert BROWSER is not None
    probe = page.with_name("probe.html")
    probe.write_text(f"<!doctype html><title>not loaded</title><body>{script.replace('PAGE', page.as_uri())}")
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr",
        "--hide-scrollbars", "--virtual-time-budget=5000",
        "--window-size=1400,900", "--proxy-server=127.0.0.1:9", "--dump-dom", *more, probe.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return (html.unescape(title[1]) if title else ""), "\n".join(console)


@pytest.mark.parametrize("scheme", ["1", "0"], ids=["light", "dark"])
def test_the_report_opens_without_a_word_a_request_or_an_overflow(run: Path, scheme: str) -> None:
    title, console = opened(write_report(run), f"--blink-settings=preferredColorScheme={scheme}")
    assert (title, console) == ("width 400; loaded 0", "")


def places(text: str) -> list[float]:
    """The numbers in what is printed beside a mark."""
    return [float(found.replace("−", "-")) for found in re.findall(r"[+−]?\d+\.\d+", text)]


@pytest.mark.parametrize(("width", "printed"), [(1280, False), (800, False), (400, False), (718, True)])
def test_marks_stand_on_their_axis_where_their_figures_say(run: Path, width: int, printed: bool) -> None:
    """Read back from the drawn page; 718 pixels are the width of A4 between its margins."""
    script = MEASURE.replace("WIDTH", str(width)).replace("PRINT", str(printed).lower())
    differences, arms = json.loads(opened(write_report(run), script=script)[0])
    assert (len(differences["rows"]), len(arms["rows"])) == (4, 5)
    assert len(differences["zeros"]) == 4
    for plot in (differences, arms):
        ticks = [(places(text)[0], x) for text, x in plot["ticks"]]
        (first, left), (last, right) = ticks[0], ticks[-1]
        scale = (right - left) / (last - first)
        assert right - left > 150
        expected = [(value, x) for value, x in ticks]
        for row in plot["rows"]:
            expected.append((places(row["value"])[0], row["dot"]))
            for line in row["line"]:
                expected += zip(places(row["interval"]), line, strict=True)
        expected += [(0.0, x) for x in plot["zeros"]]
        for value, x in expected:  # printed with two digits, drawn with all
            assert abs(left + (value - first) * scale - x) < 0.0051 * scale + 1


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
