"""What a server was seen to hold, while its clients were idle."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Held:
    """What a server was seen to hold."""

    target: str
    wanted: int
    held: int
    """Connections that were accepted, and still answered in the end."""
    bytes_each: float | None
    """PSS that the server's process tree grew by, per connection; None where it cannot be told.

    Without the pages of files: whose share they are depends on what else runs on this machine.
    """
    seconds: float
    """Until all were accepted."""
    cpu_percent_idle: float | None
    """CPU of the server while nobody asks; 100 is one core. None: it is gone."""
    ended: str = ""
    """How the server ended before it was told to, where it did."""
