"""The page of a result, in a real browser: it draws, answers the mouse, and asks for nothing."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.launching import run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")

# Put before the page's own script: it notes what goes wrong. And after it: it does what a reader
# does, and leaves what it saw in the document.
WATCH = """<script>
window.wrong = [];
addEventListener("error", event => wrong.push(String(event.message)));
for (const name of ["error", "warn"]) console[name] = (...words) => wrong.push(words.join(" "));
</script>"""
READ = """<script>
addEventListener("load", () => {
  const at = {clientX: 50, clientY: 90};
  const point = (what, kind) => what.dispatchEvent(new PointerEvent(kind, at));
  const mark = document.querySelector("svg [data-tip]");
  const tip = document.getElementById("tip");
  const seen = {wrong, hiddenAtFirst: tip.hidden};
  point(mark, "pointermove");
  seen.tip = tip.hidden ? null : tip.textContent;
  point(mark, "pointerleave");
  seen.hiddenAfterwards = tip.hidden;
  const button = document.querySelector(".legend button");
  const shown = () => [...document.querySelectorAll(`svg [data-series="${button.dataset.series}"]`)]
    .filter(mark => !mark.classList.contains("off")).length;
  seen.series = [shown()];
  button.click();
  seen.series.push(shown(), button.getAttribute("aria-pressed"));
  button.click();
  seen.series.push(shown());
  seen.drawings = [...document.querySelectorAll("svg")].map(drawing => {
    const box = drawing.getBoundingClientRect();
    return [Math.round(box.width), Math.round(box.height)];
  });
  seen.marks = [...document.querySelectorAll("svg .bar, svg .line")]
    .map(mark => mark.getBoundingClientRect().width);
  seen.text = Math.min(...[...document.querySelectorAll("svg text")]
    .map(text => text.getBoundingClientRect().height));
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.resources = performance.getEntriesByType("resource").map(one => one.name);
  seen.tables = document.querySelectorAll("figure details table").length;
  seen.colours = [getComputedStyle(document.body).backgroundColor,
    getComputedStyle(document.querySelector("svg .name")).fill];
  document.body.textContent = "SEEN" + JSON.stringify(seen) + "NEES";
});
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep that was measured for it, with every chart and some errors."""
    folder = tmp_path_factory.mktemp("page")
    result = run(
        *("echoload", "compare", "--backends", "thread", "--sweep", "connections=2,4"),
        *("--rounds", "1", "-d", "1600ms", "--warmup", "0", "--engine", "epoll", "-R", "500"),
        *("--json", str(folder / "out.json")),
    )
    assert result.returncode == 0, result.stderr
    document = json.loads((folder / "out.json").read_text())
    document["results"][0]["errors"] = {"corrupted": 1}
    document["results"][0]["first_errors"] = {"corrupted": "<script>alert(1)</script> & more"}
    (folder / "out.json").write_text(json.dumps(document))
    shown = run(
        *("echoload", "report", str(folder / "out.json"), "--html", str(folder / "page.html"))
    )
    assert shown.returncode == 0, shown.stderr
    return folder / "page.html"


def seen(page: Path, *switches: str) -> dict[str, Any]:
    """Open the page as a reader does, and return what was seen."""
    assert BROWSER
    text = page.read_text()
    watched = page.with_name("watched.html")
    watched.write_text(
        text.replace("<head>", "<head>" + WATCH, 1).replace("</body>", READ + "</body>", 1)
    )
    opened = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(f"--user-data-dir={page.parent}/profile", "--virtual-time-budget=5000"),
            *(*switches, watched.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = re.search(r"SEEN(.*)NEES", opened.stdout, re.DOTALL)
    assert found, opened.stdout[-500:] + opened.stderr[-500:]
    said = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert isinstance(said, dict)
    return said


@pytest.mark.slow
@pytest.mark.ci
@in_a_browser
def test_the_page_works(page: Path) -> None:
    for width in (1280, 500):  # a desktop, and as narrow as headless goes
        works(seen(page, f"--window-size={width},900"))
    light = seen(page)["colours"]
    dark = seen(page, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")["colours"]
    assert light == ["rgb(255, 255, 255)", "rgb(28, 33, 40)"]
    assert dark == ["rgb(15, 19, 24)", "rgb(230, 234, 239)"]


def works(found: dict[str, Any]) -> None:
    assert found["wrong"] == [], "on the console"
    assert found["resources"] == [], "it asks for nothing"
    assert found["hiddenAtFirst"]
    assert found["hiddenAfterwards"]
    assert re.search(r"^thread, connections \d: [\d.,]+ messages/s$", found["tip"])
    whole, without, pressed, again = found["series"]
    assert without == 0 < whole == again
    assert pressed == "false"
    assert len(found["drawings"]) == found["tables"] == 6, "a table behind each chart"
    assert all(drawn > 200 and tall > 50 for drawn, tall in found["drawings"])
    assert len(found["marks"]) == 2 * 2 + 2 * 1 + 2 + 2, "bars, and lines"
    assert all(wide > 0 for wide in found["marks"])
    assert found["text"] > 9, "pixels: readable"
    assert found["overflow"] <= 0, "nothing to scroll sideways"


def test_the_page_stands_alone(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!data:)\w""", text)
    assert "http:" not in text.replace("http://www.w3.org", "")
    assert "https:" not in text
    assert "<script>alert" not in text, "what a server sent is shown, and not run"
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text
    assert text.count("<figcaption>") == text.count("<figure>") == 6
