"""What `echoload doctor` does: examine this machine."""

from rich.markup import escape
from rich.table import Table

from loadtest.console import Screen
from loadtest.load import capacity
from loadtest.machine import doctor as examination


def doctor() -> int:
    """Print what on this machine skews the results, and the remedies."""
    findings = examination.examine(
        {name: one.capacity for name, one in capacity.load_calibrations().items()}
    )
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for one in findings:
        mark = "[yellow]![/]" if one.problem else "[green]ok[/]"
        advice = f"{one.problem}\n[bold]{escape(one.remedy)}[/]" if one.problem else ""
        table.add_row(mark, one.subject, escape(one.value), advice)
    Screen(width=160).print(table)
    bad = sum(bool(one.problem) for one in findings)
    print("nothing here skews the results" if not bad else f"{bad} of {len(findings)} may")
    return 0
