"""What `echoload report` does: show saved results in any format."""

from typing import Any

import click

from loadtest.cli.actions import measurement
from loadtest.errors import usage
from loadtest.output import EXIT_CLOSED_OUTPUT, complain, write
from loadtest.report.page import page
from loadtest.results.document import load, merge_runs


def report(*, files: tuple[str, ...], **options: Any) -> int:
    """Show saved results again, several runs side by side, in any format."""
    try:
        documents = [load(path) for path in files]
    except ValueError as error:
        usage(str(error))
    except OSError as error:
        raise click.ClickException(f"cannot read {error.filename}: {error.strerror}") from None
    merged = merge_runs(documents, files)
    output_files = measurement.take_output_files({"json_file": None, **options})
    failures = measurement.save(merged, {k: v for k, v in output_files.items() if k != "html"})
    if (html := output_files.get("html")) is not None:
        try:
            write(html, page(documents, files))
        except OSError as error:
            failures.append(f"--html: cannot write {html}: {error.strerror}")
    table_error = measurement.show_table(merged, output_files)
    if table_error is not None and not isinstance(table_error, BrokenPipeError):
        failures.append(f"cannot write the table: {table_error.strerror}")
    for sentence in failures:
        complain(f"echoload: {sentence}")
    if failures:
        return measurement.EXIT_COULD_NOT_RUN
    return EXIT_CLOSED_OUTPUT if table_error is not None else 0
