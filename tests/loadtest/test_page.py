"""The page of a result, in a real browser: it draws, answers the mouse, and asks for nothing."""

import json
import re
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from clients.recording import folded
from loadtest.report import axes, charts, line_chart
from loadtest.report.cells import NONE, ranking_cells
from loadtest.report.marks import Bar, Line, Point
from loadtest.results.schema import ComparedFigure, Comparison
from tests.loadtest.test_compare import row
from tests.support.browser import BROWSER
from tests.support.launching import run
from tests.support.picture import WIDTH, take

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
  seen.drawings = [...document.querySelectorAll("figure svg")].map(drawing => {
    const box = drawing.getBoundingClientRect();
    return [Math.round(box.width), Math.round(box.height)];
  });
  for (const details of document.querySelectorAll("details")) details.open = true;
  seen.clipped = [];
  for (const drawing of document.querySelectorAll("figure svg")) {
    const edge = drawing.getBoundingClientRect();
    const texts = [...drawing.querySelectorAll("text:not(.note), tspan")]
      .filter(text => !text.querySelector("tspan"))
      .map(text => [text.textContent, text.getBoundingClientRect()]);
    for (const [index, [text, box]] of texts.entries()) {
      const inside = box.left >= edge.left && box.right <= edge.right
        && box.top >= edge.top && box.bottom <= edge.bottom;
      if (!inside) seen.clipped.push(text);
      for (const [other, there] of texts.slice(index + 1)) {
        // Lines of text may touch, as they do in a paragraph; not more.
        const down = Math.min(box.bottom, there.bottom) - Math.max(box.top, there.top);
        if (down > box.height / 3 && box.left < there.right && there.left < box.right)
          seen.clipped.push(text + " over " + other);
      }
    }
  }
  seen.marks = [...document.querySelectorAll("svg .bar, svg .line")]
    .map(mark => mark.getBoundingClientRect().width);
  seen.scrolled = [...document.querySelectorAll(".wide")]
    .filter(wide => wide.scrollWidth > wide.clientWidth).length;
  seen.text = Math.min(...[...document.querySelectorAll("svg text")]
    .map(text => text.getBoundingClientRect().height));
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.resources = performance.getEntriesByType("resource").map(one => one.name);
  seen.tables = document.querySelectorAll("figure details table").length;
  seen.colours = [getComputedStyle(document.body).backgroundColor,
    getComputedStyle(document.querySelector("svg .name")).fill];
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>"""
# A window is never narrower than 500 pixels; a frame in it can be.
FRAME = """<body style="margin: 0"><script>
addEventListener("message", said => document.body.textContent = "SEEN" + said.data + "NEES");
</script><iframe style="border: 0; width: {width}px; height: 900px" src="{page}"></iframe>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep that was measured for it, with every chart and some errors."""
    folder = tmp_path_factory.mktemp("page")
    result = run(
        *("echoload", "compare", "--backends", "thread", "--sweep", "connections=2,4"),
        *("--rounds", "1", "-d", "500ms", "--warmup", "0", "--engine", "epoll", "-R", "500"),
        *("--json", str(folder / "out.json")),
    )
    assert result.returncode == 0, result.stderr
    document = json.loads((folder / "out.json").read_text())
    few, more = document["results"]
    for one in (few, more):
        one |= {"starved": 0, "connections_served": one["connections"], "dropped": 0}
        one["server"]["cpu"] = {"median": 20, "low": 20, "high": 20, "rounds": [20]}
        one["series"] = [
            {"second": second, "seconds": 1.0, "messages": 500, "errors": 0}
            | {"p50_us": 90, "p99_us": 300, "max_us": 900}
            for second in (0, 1)
        ]
    few["errors"] = {"corrupted": 1}
    few["first_errors"] = {"corrupted": "<script>alert(1)</script> & more"}
    # Long words on every axis, a server that serves only some, and one that can do more.
    more |= {"starved": 1, "connections_served": 3, "client_limited": False}
    more["server"]["cpu"] = {"median": 8300, "low": 7000, "high": 9900, "rounds": [7000, 9900]}
    few["client_limited"], few["client_limited_because"] = True, "its CPU was busy"
    few["throughput"] = {"median": 98e3, "low": 5e3, "high": 99e3, "rounds": [5e3, 98e3, 99e3]}
    few["latency_histogram"] = folded([90] * 100 + [9_000_000] * 3).encode().decode()
    (folder / "out.json").write_text(json.dumps(document))
    shown = run(
        *("echoload", "report", str(folder / "out.json"), "--html", str(folder / "page.html"))
    )
    assert shown.returncode == 0, shown.stderr
    return folder / "page.html"


def seen(page: Path, *switches: str, width: int = 1280) -> dict[str, Any]:
    """Open the page as a reader does, so many pixels wide, and return what was seen."""
    assert BROWSER
    text = page.read_text()
    watched = page.with_name("watched.html")
    watched.write_text(
        text.replace("<head>", "<head>" + WATCH, 1).replace("</body>", READ + "</body>", 1)
    )
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width, page=watched.as_uri()))
    opened = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(f"--user-data-dir={page.parent}/profile", "--virtual-time-budget=5000"),
            *(f"--window-size={max(width, 500)},900", *switches, frame.as_uri()),
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
    for width in (1280, 390):  # a desktop, and a telephone
        found = seen(page, width=width)
        works(found)
        assert found["scrolled"] or width > 500
    light = seen(page)["colours"]
    dark = seen(page, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")["colours"]
    assert light == ["rgb(255, 255, 255)", "rgb(28, 33, 40)"]
    assert dark == ["rgb(15, 19, 24)", "rgb(230, 234, 239)"]


@pytest.mark.slow
@pytest.mark.ci
@in_a_browser
def test_the_picture_of_the_readme_can_be_taken(page: Path, tmp_path: Path) -> None:
    take(page, tmp_path / "picture.png")
    png = (tmp_path / "picture.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == WIDTH
    assert 300 < int.from_bytes(png[20:24], "big") < 3000


def works(found: dict[str, Any]) -> None:
    assert found["wrong"] == [], "on the console"
    assert found["resources"] == [], "it asks for nothing"
    assert found["hiddenAtFirst"]
    assert found["hiddenAfterwards"]
    assert re.search(r"^thread, connections 2: ≥ 98,000 messages/s, 95 % interval", found["tip"])
    whole, without, pressed, again = found["series"]
    assert without == 0 < whole == again
    assert pressed == "false"
    assert len(found["drawings"]) == found["tables"] == 6, "a table behind each chart"
    assert all(drawn > 200 and tall > 50 for drawn, tall in found["drawings"])
    assert len(found["marks"]) == 2 * 2 + 2 * 1 + 2 + 2, "bars, and lines"
    assert all(wide > 0 for wide in found["marks"])
    assert found["text"] > 9, "pixels: readable"
    assert found["overflow"] <= 0, "tables scroll sideways, and not the page"
    assert found["clipped"] == [], "every word of a chart is there, and none over another"


@pytest.mark.ci
def test_the_page_stands_alone(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!data:)\w""", text)
    assert "http:" not in text.replace("http://www.w3.org", "")
    assert "https:" not in text
    assert "<script>alert" not in text, "what a server sent is shown, and not run"
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text
    assert text.count("<figcaption>") == text.count("<figure>") == 6


def drawn(page: Path, title: str) -> str:
    """Return a chart of the page."""
    found = re.search(rf"<h3>{title}</h3>(.*?)</figure>", page.read_text(), re.DOTALL)
    assert found, title
    return found[1]


@pytest.mark.ci
def test_a_server_that_serves_some_is_marked_in_every_chart(page: Path) -> None:
    for title in ("Throughput", "Server CPU per message"):
        chart = drawn(page, title)
        all_served, some_served = chart.split('<g class="mark"')[1:]
        assert "url(#hatch)" not in all_served
        assert "url(#hatch)" in some_served
        assert re.search(r'<text class="note"[^>]*>3 of 4</text>', some_served)
        assert "<td>3 of 4</td>" in chart
    for title in ("Latency", "Over time"):
        chart = drawn(page, title)
        all_served, some_served = chart.split('<g class="series"')[1:]
        assert "partial" not in all_served
        assert '<path class="line partial"' in some_served
        assert '<path class="line"' not in some_served
        assert "3 of 4</tspan>" in some_served
    assert page.read_text().count('<pattern id="hatch"') == 1
    for title in ("Throughput over connections", "Server CPU per message over connections"):
        assert '<path class="line partial"' in drawn(page, title)
        assert "3 of 4</tspan>" in drawn(page, title)


@pytest.mark.ci
def test_a_sweep_shows_bounds_and_intervals(page: Path) -> None:
    speed = drawn(page, "Throughput over connections")
    assert speed.count('class="dot bound"') == speed.count('class="arrow"') == 1
    assert speed.count('class="dot"') == 1
    assert speed.count('class="interval"') == 1, "one round has no interval"
    assert "<td>≥ 98,000</td><td>5,000</td><td>99,000</td><td>all</td>" in speed
    assert "connections 2: ≥ 98,000 messages/s, 95 % interval 5,000 to 99,000" in speed
    assert "can do more (≥)" in " ".join(speed.split()), "the caption explains it"
    cpu = drawn(page, "Server CPU per message over connections")
    assert "bound" not in cpu.split("<figcaption>")[0], "the client's limit is none of CPU"
    assert cpu.count('class="interval"') == 1


def test_who_starves_clients_has_no_rank_by_rate() -> None:
    rows = [
        row(target=name, starved=starved, client_limited=limited, cpu=[cpu] * 6)
        for name, starved, limited, cpu in (
            ("pool", 336, False, 1.0),
            ("gevent", 0, True, 2.0),
            ("thread", 0, False, 3.0),
            ("other", 0, False, 4.0),
        )
    ]
    figure: ComparedFigure = {
        "ranks": {"pool": 1, "gevent": 1, "thread": 2},
        "pairs": [],
        "ratios": {},
    }
    comparison: Comparison = {
        "sweep": {},
        "reference": None,
        "rounds": 6,
        "least_rounds": 5,
        "figures": {"cpu_us_per_message": figure, "throughput": figure},
    }
    by_rate = {line[0]: line[3] for line in ranking_cells(rows, comparison)}
    assert by_rate == {"pool": NONE, "gevent": "(≥)", "thread": "2.", "other": NONE}


def test_labels_of_lines_and_axes_have_room() -> None:
    """However many lines end at the same place, and however long the words of an axis."""
    points = [Point(1, 5), Point(2, 5)]
    many = [Line(f"target number {n}", points, n) for n in range(30)]

    def words(value: float) -> str:
        return f"{value:g} microseconds"

    drawing = line_chart.lines(
        many, axes.steps([1, 2], words), axes.linear(5, words), "", "", lambda *_: ""
    )
    ends = [float(y) for y in re.findall(r'class="end" y="([\d.]+)"', drawing)]
    assert len(ends) == 30
    assert all(below - above >= 13.9 for above, below in pairwise(ends))
    height = re.search(r'viewBox="0 0 440 ([\d.]+)"', drawing)
    assert height
    assert 10 <= ends[0] < ends[-1] < float(height[1]), "the drawing grows with them"
    bars = [Bar("x", 9900, 9000, 10000, "", 0)]
    drawing = charts.bars(bars, words, "")
    ticks = re.findall(r'class="tick" x="([\d.]+)" y="[\d.]+">([^<]*)<', drawing)
    assert (ticks[0][1], ticks[-1][1]) == ("0 microseconds", "10000 microseconds"), "the two ends"
    edges = [float(x) + side * len(text) * 7 / 2 for x, text in ticks for side in (-1, 1)]
    assert edges == sorted(edges), "each begins where the one before has ended"
    assert edges[-1] <= axes.WIDTH


def test_what_tells_two_long_labels_apart_stays() -> None:
    bars = [
        Bar(f"a-rather-long-target ({name})", 1, 1, 1, "", n)
        for n, name in enumerate(("before", "after"))
    ]
    before, after = re.findall(r'class="name"[^>]*>([^<]*)<', charts.bars(bars, str, ""))
    assert before != after
    assert max(len(before), len(after)) <= 18


def test_a_sweep_from_nothing_is_drawn() -> None:
    axis = axes.steps([0, 100, 10], str)
    assert axis.ticks == [0, 10, 100]
    assert not axis.logarithmic
    assert axes.steps([10], str).place(10, 0, 100) == 50
