"""The command of a server that is not ours, and the address on which it is to listen."""

from collections.abc import Sequence

HOST = "127.0.0.1"


def fill_in_address(words: Sequence[str], port: int) -> list[str]:
    """Return a command with the address in place of ``{host}`` and ``{port}``."""
    return [word.replace("{host}", HOST).replace("{port}", str(port)) for word in words]
