"""What can go wrong before the server serves, as sentences with an exit code."""


class EchoServerError(Exception):
    """Something the person at the prompt can mend; the message says what, where and how."""

    exit_code = 1


class ConfigError(EchoServerError):
    """Usage, configuration, a missing optional package, or a plugin that cannot be imported."""

    exit_code = 2


class BootError(EchoServerError):
    """The configuration is sound, but the server could not listen or start."""

    exit_code = 3
