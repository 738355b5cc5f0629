"""What the code and the documents cite of *UNIX Network Programming* is what stands there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Of volume 1, third edition: what a section is about, in words that a citation of it has nearby.
SECTIONS = {
    "4.5": r"\blisten\b",
    "6.8": r"\bTCP echo server, revisited\b",
    "7.5": r"\bsocket option\b",
    "30.4": r"\biterative\b",
    "30.5": r"\bone child per client\b",
    "30.6": r"\bpreforked\b.*\bno locking around accept\b",
    "30.10": r"\bone thread per client\b",
    "30.11": r"\bthread\w*\b.*\baccept",
    "30.12": r"\bprethreaded\b.*\bmain thread\b.*\baccept",
}
CITATION = re.compile(r"\bUNP (?:section )?(\d+\.\d+)")


def texts() -> dict[str, str]:
    """Return what people read, by its path."""
    folders = ("echoserver", "clients", "loadtest", "docs", "tests/golden")
    paths = [
        *ROOT.glob("*.md"),
        *(path for folder in folders for path in (ROOT / folder).rglob("*.*")),
    ]
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for path in paths
        if path.suffix in {".py", ".md", ".txt"}
    }


def test_sections_are_about_what_cites_them() -> None:
    cited = 0
    for name, text in texts().items():
        for found in CITATION.finditer(text):
            nearby = " ".join(text[max(0, found.start() - 200) : found.end() + 300].split())
            section = found[1]
            assert section in SECTIONS, f"{name}: UNP {section}"
            assert re.search(SECTIONS[section], nearby, re.IGNORECASE), f"{name}: {section}"
            cited += 1
    assert cited >= len(SECTIONS)


@pytest.mark.parametrize("document", ["README.md", "docs/grading.md"])
def test_the_book_is_named(document: str) -> None:
    """A reader who meets the three letters finds out what they stand for."""
    text = " ".join((ROOT / document).read_text().split())
    assert "W. Richard Stevens, Bill Fenner and Andrew M. Rudoff" in text
    assert "*UNIX Network Programming*, volume 1, third edition" in text
