"""The tutorial's handler: the same bytes, ASCII letters in upper case."""

from echoserver.handlers import Handler


class UpperHandler(Handler):
    """Answer with ``bytes.upper()``: a to z change, every other byte stays as it is.

    It works on bytes, never on text, so a UTF-8 sequence cut in two by TCP passes unharmed.
    """

    answers = bytes.upper

    def receive(self, data: bytes) -> bytes:
        """Return `data` with its ASCII letters in upper case."""
        return data.upper()
