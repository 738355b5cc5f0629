"""The README's picture: the charts of one page of results, side by side.

::

    make compare ARGS="--html result.html"
    .venv/bin/python -m tests.support.picture result.html docs/comparison.png
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.browser import BROWSER

WIDTH = 1750
_ONLY_CHARTS = """<style>
body { max-width: none; } body > :not(main, .shared), main > * { display: none; }
main > section:has(.charts) { display: block; } section > :not(.charts), details { display: none; }
.charts { grid-template-columns: repeat(3, 1fr); } figure { font-size: 1.05rem; }
</style><script>
addEventListener("load", () => {
  document.title = Math.ceil(document.body.getBoundingClientRect().height);
});
</script></head>"""


def take(page: Path, picture: Path) -> None:
    """Write the picture of a page's charts."""
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / "page.html"
        shown.write_text(page.read_text().replace("</head>", _ONLY_CHARTS, 1))
        document = _browse(folder, shown, "--dump-dom", height=1000)
        height = int(document.partition("<title>")[2].partition("</title>")[0])
        _browse(folder, shown, f"--screenshot={picture.resolve()}", height=height)


def _browse(folder: str, shown: Path, *switches: str, height: int) -> str:
    if BROWSER is None:
        raise SystemExit("no chromium to take a picture with")
    words = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *(f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{height}"),
        *(*switches, shown.as_uri()),
    ]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


if __name__ == "__main__":
    take(*map(Path, sys.argv[1:3]))
