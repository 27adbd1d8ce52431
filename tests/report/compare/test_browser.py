"""The page of a report in a real browser, from disk."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimvit.report.compare.comparison import compare_runs
from slimvit.report.compare.formats import write_comparison
from slimvit.report.compare.measurement import CollectedRuns, Measurement

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
    "--virtual-time-budget=3000", "--dump-dom",
)  # fmt: skip
ERRORS = """<script>
window.seen = [];
window.addEventListener("error", (e) => window.seen.push(String(e.message)), true);
</script>"""
PROBE = """<script>
window.addEventListener("load", () => {
  const column = (i) => Array.from(document.querySelector("tbody").rows, (row) => row.cells[i].textContent);
  const heads = Array.from(document.querySelectorAll("table")[0].tHead.rows[0].cells);
  const click = (i) => { heads[i].querySelector("button").click(); return column(i); };
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  const found = {
    heads: heads.map((head) => head.textContent),
    before: heads.map((_, i) => column(i)),
    rising: heads.map((_, i) => click(i)),
    falling: heads.map((_, i) => { click(i); return click(i); }),
    pictures: Array.from(document.images, (i) => [i.alt, i.naturalWidth, i.getBoundingClientRect().width]),
    wide: document.documentElement.scrollWidth <= window.innerWidth,
    errors: window.seen,
  };
  const told = document.createElement("pre");
  told.id = "probe";
  told.textContent = JSON.stringify(found);
  document.body.append(told);
});
</script>"""


@pytest.fixture(scope="module")
def opened(run: Callable[..., Measurement], many: list[Measurement], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the page's own script made of the page, and what the browser logged."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH; apt-get install chromium")
    out = tmp_path_factory.mktemp("browser")
    picture = Path(__file__).parents[3] / "docs" / "mixes.png"
    named = run("a <b> & 'c'", 0.5, None, original=None, pictures={"heads kept": picture})
    write_comparison(compare_runs(CollectedRuns((*many, named), notes=("5 < 6",))), out)
    text = (out / "tradeoff.html").read_text()
    probed = text.replace("<head>", "<head>" + ERRORS, 1).replace("</body>", PROBE + "</body>", 1)
    (out / "probed.html").write_text(probed)
    words = [CHROMIUM, *FLAGS, f"--user-data-dir={out / 'profile'}", (out / "probed.html").as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert match, done.stderr[-2000:]
    return json.loads(html.unescape(match[1])), done.stderr


def figure(text: str) -> float:
    return float(text.split(" ±")[0])


def test_nothing_goes_wrong(opened: Any) -> None:
    found, logged = opened
    assert found["errors"] == [] and "CONSOLE" not in logged


def test_every_picture_is_there(opened: Any) -> None:
    found, _ = opened
    assert len(found["pictures"]) >= 4 and "heads kept" in [alt for alt, *_ in found["pictures"]]
    assert all(natural > 0 and drawn > 0 for _, natural, drawn in found["pictures"]), found["pictures"]


def test_every_column_sorts_on_click(opened: Any) -> None:
    found, _ = opened
    assert found["heads"][:5] == ["name", "heads", "params (M)", "FLOPs (G)", "top-1"]
    for name in ("heads", "top-1", "change", "latency (ms)"):
        i = found["heads"].index(name)
        rising, falling = found["rising"][i], found["falling"][i]
        assert sorted(rising) == sorted(found["before"][i])
        known = [figure(cell) for cell in rising if cell != "-"]
        assert known == sorted(known) and len(set(known)) > 2
        assert [figure(cell) for cell in falling if cell != "-"] == known[::-1]
        for column in (rising, falling):  # what was not measured stays at the end
            assert "-" not in column[: len(known)]
    names = found["rising"][0]
    assert names[0] == "a <b> & 'c'" and names == sorted(names)


def test_the_page_fits_its_window(opened: Any) -> None:
    assert opened[0]["wide"]
