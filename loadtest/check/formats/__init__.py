"""Reports, for people and for the hosts that grade."""

from collections.abc import Callable
from dataclasses import dataclass

from loadtest.check.formats import data, hosts, pages, text
from loadtest.check.model import Report


@dataclass(frozen=True, slots=True)
class Format:
    """A format of a report."""

    render: Callable[[Report], str]
    counts_as_graded: bool = False
    """Its host takes any exit code but 0 for a broken grader: the results are in the file."""


GRADE_FORMATS = {
    "text": Format(text.as_text),
    "json": Format(data.as_json),
    "junit": Format(data.as_junit),
    "tap": Format(data.as_tap),
    "gradescope": Format(hosts.gradescope, counts_as_graded=True),
    "classroom50": Format(hosts.classroom50, counts_as_graded=True),
    "autolab": Format(hosts.autolab, counts_as_graded=True),
    "markdown": Format(pages.markdown),
    "html": Format(pages.html),
}
