"""What is said about an exception that code of someone else's raised."""

from collections.abc import Callable
from functools import partial


class HandlerTypeError(TypeError):
    """A handler returned what is neither bytes nor a step; the message holds no payload."""

    def __init__(self, found: object) -> None:
        super().__init__(
            f"an answer is bytes, or steps of bytes and Sleep, not {type(found).__name__}"
        )


PEER_CAUSED_EVENTS = frozenset({"tls_failed"})
"""Events that the peer has caused, and not this server."""


def tls_failed(reason: str) -> tuple[str, dict[str, str]]:
    """Tell, as an event and what is said of it, why TLS was not spoken with a peer."""
    return "tls_failed", {"reason": reason.lower().replace("_", " ")}


def describe_exception(error: BaseException) -> dict[str, str]:
    """Tell what failed, where, and in its own words; for what no peer has had to do with."""
    about = {"error": type(error).__name__}
    if str(error):
        about["reason"] = " ".join(str(error).split())
    return about | _where(error)


def describe_without_message(
    make_handler: Callable[[], object], error: BaseException
) -> dict[str, str]:
    """Tell what failed and where; never the error's words, which may quote what a peer sent."""
    about = {"handler": _name(make_handler), "error": type(error).__name__}
    if isinstance(error, HandlerTypeError):
        return about | {"reason": str(error)}  # the core's own words
    return about | _where(error)


def _where(error: BaseException) -> dict[str, str]:
    import traceback  # noqa: PLC0415 - rarely needed, and large

    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return {}
    return {"where": f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}"}


def _name(make_handler: Callable[[], object]) -> str:
    what = make_handler.func if isinstance(make_handler, partial) else make_handler
    return getattr(what, "__qualname__", repr(what))
