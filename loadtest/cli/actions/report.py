"""What `echoload report` does: show saved results in any format."""

from typing import Any

import click

from loadtest.cli.actions import measurement
from loadtest.errors import usage
from loadtest.output import EXIT_CLOSED_OUTPUT, complain, write
from loadtest.report.page import page
from loadtest.results.document import beside, load


def report(*, files: tuple[str, ...], **options: Any) -> int:
    """Show saved results again, several runs side by side, in any format."""
    try:
        found = [load(path) for path in files]
    except ValueError as error:
        usage(str(error))
    except OSError as error:
        raise click.ClickException(f"cannot read {error.filename}: {error.strerror}") from None
    together = beside(found, files)
    written = measurement.chosen_files({"json_file": None, **options})
    trouble = measurement.save(together, {k: v for k, v in written.items() if k != "html"})
    if (html := written.get("html")) is not None:
        try:
            write(html, page(found, files))
        except OSError as error:
            trouble.append(f"--html: cannot write {html}: {error.strerror}")
    problem = measurement.show_table(together, written)
    if problem is not None and not isinstance(problem, BrokenPipeError):
        trouble.append(f"cannot write the table: {problem.strerror}")
    for sentence in trouble:
        complain(f"echoload: {sentence}")
    if trouble:
        return measurement.EXIT_COULD_NOT_RUN
    return EXIT_CLOSED_OUTPUT if problem is not None else 0
