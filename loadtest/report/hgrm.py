"""Latencies as HdrHistogram's plotter and its other tools read them."""

import io

from hdrh.histogram import HdrHistogram

from loadtest.results.document import label
from loadtest.results.schema import Document

_TICKS = 5  # lines for each halving of the distance to 100 %
_US_PER_MS = 1000


def hgrm(document: Document) -> str:
    """Return the percentiles of each target, in milliseconds, as ``.hgrm`` files have them.

    There is a section for each target, after a line with its name; the plotter takes one at a time.
    """
    parts = ["#[Interrupted]\n"] if document.get("interrupted") else []
    for row in document["results"]:
        text = io.BytesIO()
        histogram = HdrHistogram.decode(row["latency_histogram"])
        histogram.output_percentile_distribution(text, _US_PER_MS, _TICKS)
        heading = f"#[Target: {label(row)}]\n" if len(document["results"]) > 1 else ""
        parts.append(heading + text.getvalue().decode("ascii"))
    return "\n".join(parts)
