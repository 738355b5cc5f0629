"""The result of holding idle connections open to a server."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HoldResult:
    """The idle connections that a server held, and what they cost it."""

    target: str
    wanted: int
    held: int
    """Connections that were accepted, and still answered in the end."""
    bytes_each: float | None
    """PSS that the server's process tree grew by, per connection; None if unknown.

    Pages of files are left out: their shares depend on what else runs on this machine.
    """
    seconds: float
    """The time until all were accepted."""
    cpu_percent_idle: float | None
    """CPU of the server while no client sends; 100 is one core. None: the server is gone."""
    ended: str = ""
    """How the server ended by itself; empty: it did not."""
