"""The progress of a measurement: live on a terminal, line by line elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, Progress, TextColumn

from echoserver.terminal import has_motion
from loadtest.console import Screen
from loadtest.output import complain

_WIDTH = 80  # of a file or pipe, where no bar is drawn


class RoundProgress:
    """Counts rounds of about the same length on stderr.

    Args:
        rounds: The number of rounds.
        seconds: The duration of each round's workload; None if it is not known.
        quiet: Print nothing.
        overhead: Seconds that a round takes besides; a first guess, corrected after each round.
    """

    def __init__(
        self, rounds: int, seconds: float | None, *, quiet: bool = False, overhead: float = 1.0
    ) -> None:
        self._rounds = rounds
        self._per_round = (seconds or 1.0) + overhead
        self._number = 0
        self._target = ""
        self._errors = 0
        self._quiet = quiet
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        if has_motion(sys.stderr) and not quiet:
            self._bar = Progress(
                TextColumn("round {task.fields[number]}/{task.total:.0f}"),
                BarColumn(),
                TextColumn("{task.fields[target]}"),
                TextColumn("{task.fields[rate]}"),
                TextColumn("[red]{task.fields[errors]}"),
                TextColumn("{task.fields[left]} left"),
                console=Screen(sys.stderr, _WIDTH),
                transient=True,
            )
            self._task = self._bar.add_task(
                "rounds",
                total=rounds,
                number=1,
                target="",
                rate="",
                errors="",
                left=self._remaining(0.0),
            )

    def say(self, text: str) -> None:
        """Show a step that is not a round."""
        if self._bar is not None:
            self._bar.update(self._task, target=text)
        elif not self._quiet:
            complain(text)

    def begin(self, number: int, target: str) -> None:
        """Show that round `number` (from 0), of `target`, begins."""
        if number == 0:
            self._start = time.monotonic()
        self._number, self._target = number, target
        self._show(0.0, "")

    def during(self, seconds: float, rate: float, errors: int) -> None:
        """Show the elapsed seconds, the present rate, and the errors of the round."""
        rate_text = f"{rate:,.0f} messages/s" if rate else ""
        self._show(min(0.95, max(0.0, seconds) / self._per_round), rate_text, errors)

    def end(self, text: str) -> None:
        """Show that the round is over, with `text` as its result."""
        self._per_round = (time.monotonic() - self._start) / (self._number + 1)
        self._show(1.0, text)
        if self._bar is None and not self._quiet:
            complain(
                f"round {self._number + 1}/{self._rounds}  {self._target}: {text}, "
                f"{self._remaining(1.0)} left"
            )

    def _show(self, share: float, rate: str, errors: int = 0) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=self._number + share,
                number=self._number + 1,
                target=self._target,
                rate=rate,
                errors=f"{errors} errors" if errors else "",
                left=self._remaining(share),
            )

    def _remaining(self, share: float) -> str:
        seconds = round(max(0.0, self._rounds - self._number - share) * self._per_round)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
