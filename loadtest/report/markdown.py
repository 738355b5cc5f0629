"""A document as Markdown, for a pull request or a README."""

from collections.abc import Sequence

from loadtest.report.cells import HEADINGS, RANKING_HEADINGS, cells, ranking_cells, remarks
from loadtest.results.document import label
from loadtest.results.schema import Document


def markdown(document: Document) -> str:
    """Return a document as Markdown tables, with the remarks and the command."""
    parts = [
        _table([" ".join(heading).strip() for heading in HEADINGS], map(cells, document["results"]))
    ]
    for comparison in document["comparison"]:
        sweep = ", ".join(f"{name}={value}" for name, value in comparison["sweep"].items())
        reference = comparison["reference"] or "the reference"
        headings = [
            " ".join(heading).strip().replace("the reference", reference)
            for heading in RANKING_HEADINGS
        ]
        title = f"**{sweep}**\n\n" if sweep else ""
        parts.append(title + _table(headings, ranking_cells(document["results"], comparison)))
    errors = [
        f"{label(row)}: first {kind}: {first}"
        for row in document["results"]
        for kind, first in row["first_errors"].items()
    ]
    parts += [_escape(text) for text in [*errors, *remarks(document)]]
    environment = document["environment"]
    parts.append(
        f"`{environment['command']}` on {environment['cpu']}, {environment['cpus']} CPUs, "
        f"{environment['kernel']}, {environment['interpreter']['implementation']} "
        f"{environment['interpreter']['version']}, {environment['time']}"
    )
    return "\n\n".join(parts) + "\n"


def _table(headings: Sequence[str], rows: "Sequence[list[str]] | map[list[str]]") -> str:
    rule = ["---" if number == 0 else "---:" for number in range(len(headings))]
    lines = [_line(headings), f"|{'|'.join(rule)}|"]
    return "\n".join([*lines, *(_line([_escape(cell) for cell in row]) for row in rows)])


def _line(cells_: Sequence[str]) -> str:
    return f"| {' | '.join(cells_)} |"


def _escape(text: str) -> str:
    """Return `text` with everything escaped that could be taken for markup."""
    text = " ".join(text.split())
    for sign in "\\|<>*_`[]":
        text = text.replace(sign, "\\" + sign)
    return text
