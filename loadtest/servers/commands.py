"""A stranger's server: where it is to listen, and how it is told."""

from collections.abc import Sequence

HOST = "127.0.0.1"


def addressed(words: Sequence[str], port: int) -> list[str]:
    """Return a command with the address in place of ``{host}`` and ``{port}``."""
    return [word.replace("{host}", HOST).replace("{port}", str(port)) for word in words]
