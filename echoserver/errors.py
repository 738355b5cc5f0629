"""The exceptions of the server: failures to start, each with an exit code, and TLS failures."""

from collections.abc import Iterable


class EchoServerError(Exception):
    """A failure that the user at the prompt can correct; the message says what, where and how."""

    exit_code = 1


class ConfigError(EchoServerError):
    """Usage, configuration, a missing optional package, or a plugin that cannot be imported."""

    exit_code = 2


class BootError(EchoServerError):
    """The configuration is sound, but the server could not listen or start."""

    exit_code = 3


class NoApplicationData(BlockingIOError):  # noqa: N818 - not a failure
    """TLS records arrived, but no application data yet: wait again."""


class TlsError(ConnectionError):
    """A peer does not speak TLS, or is not to be trusted; ``strerror`` is OpenSSL's reason."""


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return ``; did you mean 'port'?`` if one of `names` is close to `name`, else nothing."""
    from difflib import get_close_matches  # noqa: PLC0415 - rarely needed

    matches = get_close_matches(name, list(names), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return what `suggestion` does, with dashes for underscores, because people type dashes."""
    return suggestion(name, names).replace("_", "-")
