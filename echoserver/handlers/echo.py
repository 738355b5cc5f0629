"""The Echo Protocol of RFC 862: any data received is sent back."""

from echoserver.handlers import Handler


class EchoHandler(Handler):
    """Answer with the very bytes that came."""

    # What ``def receive(self, data): return data`` does; but calling a Python function is a tenth
    # of what a message costs where each client has a process (docs/performance.md).
    receive = staticmethod(bytes.__bytes__)  # type: ignore[assignment] # it takes and gives bytes
