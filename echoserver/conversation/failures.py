"""How exceptions of handlers, plugins and TLS are described in the log."""

from collections.abc import Callable
from functools import partial


class HandlerTypeError(TypeError):
    """A handler returned neither bytes nor steps; the message holds no payload."""

    def __init__(self, value: object) -> None:
        super().__init__(
            f"an answer is bytes, or steps of bytes and Sleep, not {type(value).__name__}"
        )


PEER_CAUSED_EVENTS = frozenset({"tls_failed"})
"""Events that a peer causes, and not this server."""


def describe_tls_failure(reason: str) -> tuple[str, dict[str, str]]:
    """Return the event and the fields that tell why a peer was not served over TLS."""
    return "tls_failed", {"reason": reason.lower().replace("_", " ")}


def describe_exception(error: BaseException) -> dict[str, str]:
    """Return the type, the message and the place of an error that no peer has influenced."""
    fields = {"error": type(error).__name__}
    if str(error):
        fields["reason"] = " ".join(str(error).split())
    return fields | _location(error)


def describe_without_message(
    make_handler: Callable[[], object], error: BaseException
) -> dict[str, str]:
    """Return the type and the place of an error; its message may quote what a peer sent."""
    fields = {"handler": _handler_name(make_handler), "error": type(error).__name__}
    if isinstance(error, HandlerTypeError):
        return fields | {"reason": str(error)}  # a message of the core, without payload
    return fields | _location(error)


def _location(error: BaseException) -> dict[str, str]:
    import traceback  # noqa: PLC0415 - rarely needed, and large

    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return {}
    return {"where": f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}"}


def _handler_name(make_handler: Callable[[], object]) -> str:
    factory = make_handler.func if isinstance(make_handler, partial) else make_handler
    return getattr(factory, "__qualname__", repr(factory))
