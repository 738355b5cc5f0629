"""A document as one self-contained page, to be read without a network or a mouse."""

from collections.abc import Mapping
from pathlib import Path

import jinja2

from loadtest.report import charts
from loadtest.report.cells import HEADINGS, RANKED, cells, ranked, remarks
from loadtest.report.figures import CHARTS, numbered
from loadtest.results.document import beside, label
from loadtest.results.schema import Comparison, Document, Row


def page(found: list[Document], names: tuple[str, ...] = ()) -> str:
    """Return documents as a page, several runs side by side.

    Args:
        found: What was measured.
        names: The files that it comes from; needed for several.
    """
    together = beside(found, names)
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )
    rows = together["results"]
    return environment.get_template("page.html.jinja").render(
        charts=[chart for make in CHARTS if (chart := make(rows)) is not None],
        series={number: row["target"] for number, row in numbered(rows)}.items(),
        headings=[" ".join(heading).strip() for heading in HEADINGS],
        cells=[cells(row) for row in rows],
        comparisons=[
            _ranking(one, comparison) for one in found for comparison in one["comparison"]
        ],
        errors=[_errors(row) for row in rows if row["errors"]],
        remarks=[remark for one in found for remark in remarks(one)],
        environments=[(name, _flat(one["environment"])) for name, one in _named(found, names)],
        plans=[(name, _flat(one["plan"])) for name, one in _named(found, names)],
        command=found[0]["environment"]["command"],
        time=found[0]["environment"]["time"],
        colours=charts.COLOURS,
    )


def _named(found: list[Document], names: tuple[str, ...]) -> list[tuple[str, Document]]:
    return list(zip(names if len(found) > 1 else [""], found, strict=False))


def _ranking(found: Document, comparison: Comparison) -> dict[str, object]:
    reference = comparison["reference"] or "the reference"
    return {
        "title": ", ".join(f"{name}={value}" for name, value in comparison["sweep"].items()),
        "headings": [" ".join(one).strip().replace("the reference", reference) for one in RANKED],
        "rows": ranked(found["results"], comparison),
    }


def _errors(row: Row) -> dict[str, object]:
    return {
        "target": label(row),
        "kinds": [
            (kind, count, row["first_errors"].get(kind, ""))
            for kind, count in row["errors"].items()
        ],
    }


def _flat(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name} ")
        elif value is not None:
            found.append((f"{prefix}{name}".replace("_", " "), str(value)))
    return found
