"""What `echoload calibrate` does: measure this machine's load client."""

import click

from loadtest.cli.actions.arguments import make_pinning
from loadtest.errors import LoadError
from loadtest.experiments.calibration import Rates
from loadtest.experiments.calibration import calibrate as measure_rates
from loadtest.interruption import EXIT_INTERRUPTED, treat_all_as_ctrl_c
from loadtest.load import capacity
from loadtest.output import complain


def calibrate(*, pin: str, rounds: int) -> int:
    """Measure the capacity of this machine's load client, and save it to judge runs by."""
    treat_all_as_ctrl_c()
    rates = Rates(rounds)
    interrupted = False
    try:
        measure_rates(make_pinning(pin, 1), rates)
    except KeyboardInterrupt:
        interrupted = True
    except LoadError as error:
        raise click.ClickException(str(error)) from None
    calibrations = rates.summary()
    path, failure = None, ""
    try:
        path = None if interrupted else capacity.save_calibrations(calibrations)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        failure = f"cannot keep it: {where}{error.strerror}; set XDG_CACHE_HOME to a folder "
        failure += "that can be written to"
    for engine, one in calibrations.items():
        share = f", {one.of_c:.0%} of a client in C that verifies nothing" if one.of_c else ""
        print(f"{engine}: {one.capacity:,.0f} messages/s for each process{share}")
    if calibrations:
        print(f"against {rates.server}" + (f"; kept in {path}" if path else ""))
    if interrupted:
        complain(f"interrupted after {rates.complete_rounds} of {rounds} rounds: nothing was kept")
        return EXIT_INTERRUPTED
    if failure:
        raise click.ClickException(failure)
    return 0
