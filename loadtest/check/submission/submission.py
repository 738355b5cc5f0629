"""The submission: a command that can start the server again and again."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from loadtest.check.submission.server import (
    CannotGrade,
    Limits,
    NotStarted,
    Server,
    describe_exit,
)
from loadtest.machine.ports import free_port
from loadtest.machine.sockets import listens
from loadtest.servers.commands import fill_in_address


@dataclass(frozen=True, slots=True)
class Submission:
    """A command that starts a server."""

    command: Sequence[str]
    """The words of the command; ``{host}`` and ``{port}`` stand for the address to listen on, and
    HOST and PORT are in the environment."""
    limits: Limits = field(default_factory=Limits)
    port: int | None = None
    """The port that the server listens on by itself; None: it is told a free one."""

    @property
    def name(self) -> str:
        """The command, as typed."""
        return shlex.join(self.command)

    def build(self, command: str, seconds: float) -> None:
        """Run the command that builds the server, within the same limits as the server.

        Raises:
            NotStarted: The build failed.
        """
        with Server(["sh", "-c", command], 0, self.limits) as builder:
            status = builder.await_exit(seconds)
            if status is None:
                raise NotStarted(
                    f"the build, {command!r}, was not done within {seconds:.0f} s",
                    builder.output(),
                    "Run it by hand, in the same folder: what does it wait for?",
                )
            if status != 0:
                raise NotStarted(
                    f"the build, {command!r}, failed: it {describe_exit(status)}",
                    builder.output(),
                    "Run it by hand, in the same folder; what it printed is below.",
                )

    def start(
        self, patience: float, port: int | None = None, nofile: int | None = None
    ) -> "Server":
        """Start a server, and return it when it listens.

        Args:
            patience: Seconds within which it must listen.
            port: The port to listen on; None: that of the submission, or a free one.
            nofile: The limit of its descriptors; None: the limit of the submission.

        Raises:
            CannotGrade: Another program listens on the port of the submission.
            NotStarted: The server ended before, or does not listen on the port.
        """
        if port is None and self.port is not None and listens(self.port):
            raise CannotGrade(
                f"something else listens on port {self.port} already; end it, or choose another "
                "--port"
            )
        port = port or self.port or free_port()
        limits = self.limits
        if nofile is not None:
            least = min(nofile, limits.nofile or nofile)
            limits = replace(limits, nofile=least)
        server = Server(fill_in_address(self.command, port), port, limits)
        try:
            server.await_listening(patience)
        except BaseException:
            server.end()
            raise
        return server
