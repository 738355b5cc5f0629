"""Documents as one self-contained page, which can be read without a network or a mouse."""

from collections.abc import Mapping
from pathlib import Path

from loadtest.report import charts
from loadtest.report.cells import HEADINGS, RANKING_HEADINGS, cells, ranking_cells, remarks
from loadtest.report.chart import number_targets
from loadtest.report.figures import CHARTS
from loadtest.results.document import label, merge_runs
from loadtest.results.schema import Comparison, Document, Row
from loadtest.templates import page_template


def page(documents: list[Document], names: tuple[str, ...] = ()) -> str:
    """Return documents as a page, several runs side by side.

    Args:
        documents: The measurements.
        names: The files that they come from; needed if there are several.
    """
    merged = merge_runs(documents, names)
    rows = merged["results"]
    return page_template(Path(__file__).with_name("page.html.jinja")).render(
        charts=[chart for make in CHARTS if (chart := make(rows)) is not None],
        series={number: row["target"] for number, row in number_targets(rows)}.items(),
        headings=[" ".join(heading).strip() for heading in HEADINGS],
        cells=[cells(row) for row in rows],
        comparisons=[
            _ranking(document, comparison)
            for document in documents
            for comparison in document["comparison"]
        ],
        errors=[_errors(row) for row in rows if row["errors"]],
        remarks=[remark for document in documents for remark in remarks(document)],
        environments=[
            (name, _flatten(document["environment"]))
            for name, document in _with_names(documents, names)
        ],
        plans=[
            (name, _flatten(document["plan"])) for name, document in _with_names(documents, names)
        ],
        command=documents[0]["environment"]["command"],
        time=documents[0]["environment"]["time"],
        colours=charts.COLOURS,
    )


def _with_names(documents: list[Document], names: tuple[str, ...]) -> list[tuple[str, Document]]:
    return list(zip(names if len(documents) > 1 else [""], documents, strict=False))


def _ranking(document: Document, comparison: Comparison) -> dict[str, object]:
    reference = comparison["reference"] or "the reference"
    return {
        "title": ", ".join(f"{name}={value}" for name, value in comparison["sweep"].items()),
        "headings": [
            " ".join(heading).strip().replace("the reference", reference)
            for heading in RANKING_HEADINGS
        ],
        "rows": ranking_cells(document["results"], comparison),
    }


def _errors(row: Row) -> dict[str, object]:
    return {
        "target": label(row),
        "kinds": [
            (kind, count, row["first_errors"].get(kind, ""))
            for kind, count in row["errors"].items()
        ],
    }


def _flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for name, value in values.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{prefix}{name} ")
        elif value is not None:
            pairs.append((f"{prefix}{name}".replace("_", " "), str(value)))
    return pairs
