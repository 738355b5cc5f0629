"""What is graded: a command that starts a server, again and again, or a running server."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from loadtest.check.submission.server import Limits, NotStarted, Server, ended
from loadtest.machine.ports import free_port
from loadtest.servers.commands import addressed


@dataclass(frozen=True, slots=True)
class Submission:
    """A command that starts a server."""

    command: Sequence[str]
    """Its words; ``{host}`` and ``{port}`` stand for where to listen, and HOST and PORT are in the
    environment."""
    limits: Limits = field(default_factory=Limits)

    @property
    def name(self) -> str:
        """The command, as typed."""
        return shlex.join(self.command)

    def build(self, command: str, seconds: float) -> None:
        """Run what builds the server, within the same limits as the server.

        Raises:
            NotStarted: It failed.
        """
        with Server(["sh", "-c", command], 0, self.limits) as builder:
            status = builder.await_exit(seconds)
            if status is None:
                raise NotStarted(
                    f"the build, {command!r}, was not done within {seconds:.0f} s",
                    builder.output(),
                )
            if status != 0:
                raise NotStarted(
                    f"the build, {command!r}, failed: it {ended(status)}", builder.output()
                )

    def start(
        self, patience: float, port: int | None = None, nofile: int | None = None
    ) -> "Server":
        """Start a server, and return it when it listens.

        Args:
            patience: Seconds until it must.
            port: Where; None: on a port that is free.
            nofile: Most descriptors, where that differs from the submission's own limit.

        Raises:
            NotStarted: It ended before, or does not listen where it should.
        """
        port = port or free_port()
        limits = self.limits
        if nofile is not None:
            least = min(nofile, limits.nofile or nofile)
            limits = replace(limits, nofile=least)
        server = Server(addressed(self.command, port), port, limits)
        try:
            server.await_listening(patience)
        except BaseException:
            server.end()
            raise
        return server
