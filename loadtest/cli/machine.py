"""The commands `echoload calibrate` and `echoload doctor`: this machine."""

import click
from rich.markup import escape
from rich.table import Table

from loadtest.cli.arguments import (
    make_pinning,
)
from loadtest.cli.options import (
    PIN,
    options_of,
)
from loadtest.console import Screen
from loadtest.errors import LoadError
from loadtest.experiments import calibration
from loadtest.interruption import EXIT_INTERRUPTED, treat_all_as_ctrl_c
from loadtest.load import capacity
from loadtest.machine import doctor as examination
from loadtest.output import complain


@click.command(short_help="Measure what the load client reaches here.")
@options_of(
    PIN,
    [
        click.option(
            "--rounds",
            type=click.IntRange(1, 100),
            default=3,
            show_default=True,
            metavar="N",
            help="How often each engine is measured.",
        )
    ],
)
def calibrate(*, pin: str, rounds: int) -> int:
    """Measure what this machine's load client can reach, and keep it to judge runs by."""
    treat_all_as_ctrl_c()
    rates = calibration.Rates(rounds)
    interrupted = False
    try:
        calibration.calibrate(make_pinning(pin, 1), rates)
    except KeyboardInterrupt:
        interrupted = True
    except LoadError as error:
        raise click.ClickException(str(error)) from None
    found = rates.summary()
    path, failure = None, ""
    try:
        path = None if interrupted else capacity.keep(found)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        failure = f"cannot keep it: {where}{error.strerror}; set XDG_CACHE_HOME to a folder "
        failure += "that can be written to"
    for engine, one in found.items():
        share = f", {one.of_c:.0%} of a client in C that verifies nothing" if one.of_c else ""
        print(f"{engine}: {one.capacity:,.0f} messages/s for each process{share}")
    if found:
        print(f"against {rates.server}" + (f"; kept in {path}" if path else ""))
    if interrupted:
        complain(f"interrupted after {rates.whole} of {rounds} rounds: nothing was kept")
        return EXIT_INTERRUPTED
    if failure:
        raise click.ClickException(failure)
    return 0


@click.command(short_help="Say what on this machine skews the results.")
def doctor() -> int:
    """Say what on this machine skews the results, and what mends it."""
    findings = examination.examine({name: one.capacity for name, one in capacity.known().items()})
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for one in findings:
        mark = "[yellow]![/]" if one.problem else "[green]ok[/]"
        said = f"{one.problem}\n[bold]{escape(one.remedy)}[/]" if one.problem else ""
        table.add_row(mark, one.subject, escape(one.value), said)
    Screen(width=160).print(table)
    bad = sum(bool(one.problem) for one in findings)
    print("nothing here skews the results" if not bad else f"{bad} of {len(findings)} may")
    return 0
