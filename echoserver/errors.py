"""What can go wrong: before the server serves, as sentences with an exit code; and with TLS."""

from collections.abc import Iterable


class EchoServerError(Exception):
    """Something the person at the prompt can mend; the message says what, where and how."""

    exit_code = 1


class ConfigError(EchoServerError):
    """Usage, configuration, a missing optional package, or a plugin that cannot be imported."""

    exit_code = 2


class BootError(EchoServerError):
    """The configuration is sound, but the server could not listen or start."""

    exit_code = 3


class NoApplicationData(BlockingIOError):  # noqa: N818 - no error: BlockingIOError is neither
    """TLS records arrived, but no application data yet: wait again."""


class TlsError(ConnectionError):
    """A peer does not speak TLS, or is not to be trusted; ``strerror`` is OpenSSL's reason."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'port'?`` where one of `known` is close to `name`, else nothing."""
    from difflib import get_close_matches  # noqa: PLC0415 - rarely needed

    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Do as `suggestion`, with the dashes that people type in the place of underscores."""
    return suggestion(name, known).replace("_", "-")
