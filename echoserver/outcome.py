"""Why a connection has ended."""

from enum import StrEnum


class Outcome(StrEnum):
    """The reason, as the access log and the metrics name it."""

    EOF = "eof"
    """The client ended its stream, and everything was answered."""
    DRAINED = "drained"
    """The server, or its worker, stops, and everything was answered."""
    RESET = "reset"
    """The peer, or the network, broke the connection."""
    IDLE_TIMEOUT = "idle_timeout"
    """Nothing came for ``--idle-timeout``."""
    WRITE_TIMEOUT = "write_timeout"
    """The peer took nothing for ``--write-timeout``."""
    HANDLER_ERROR = "handler_error"
    """The handler raised an exception, or returned what is not an answer."""
    TLS_FAILED = "tls_failed"
    """TLS could not be spoken with the peer, or the peer was not to be trusted."""
    TLS_TIMEOUT = "tls_timeout"
    """The TLS handshake took longer than ``--handshake-timeout``."""
    TRUNCATED = "truncated"
    """The peer's stream ended without TLS's close_notify."""
    REFUSED = "refused"
    """No thread or process could be started to serve the connection."""
    SHED = "shed"
    """The client was silent, and made room for another one (``--overload shed-idle``)."""
    CUT = "cut"
    """The client was still owed output when the drain's time was over."""
    ABANDONED = "abandoned"
    """The connection was still open after it had been cut."""
