"""What monitoring reads of a server: over HTTP, from a process that serves nobody else.

It reads what the others write in shared memory, and they never wait for it: not for a scraper
that hangs, nor for a port that is taken.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from echoserver.monitoring.helper_process import Helper, SupervisedHelper
from echoserver.monitoring.metrics import MetricsPage
from echoserver.monitoring.scoreboard import Scoreboard
from echoserver.system.privileges import Identity
from echoserver.system.processes import ParentDeathSignal

_PATIENCE = 5.0  # seconds for a request, and for its answer to be taken

_AT_A_TIME = 32  # requests

_RETRY = 1.0  # seconds until a port that is taken is tried again

_GIVEN_UP = 0.5  # seconds to end

_END = signal.SIGUSR2


class Exporter:
    """Answers /metrics, /healthz and /readyz.

    Args:
        address: Where to listen.
        start_time: When the server started, in Unix time.

    Raises:
        socket.gaierror: There is no such host.
        UnicodeError: Its name cannot be one.
    """

    def __init__(self, address: tuple[str, int], start_time: float) -> None:
        self._address, self._start_time = address, start_time
        self._sock: socket.socket | None = None
        self.port = address[1]
        """Where it listens."""
        self.problem = ""
        """Why it does not listen yet; it goes on trying."""
        try:
            self._sock = _listen(address)
            self.port = self._sock.getsockname()[1]
        except OSError as error:
            if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
                raise  # what never resolves need not be tried again
            number = error.errno or 0
            self.problem = os.strerror(number) if number > 0 else error.strerror or str(error)

    def start(self, scoreboard: Scoreboard, identity: Identity | None) -> Helper:
        """Serve what stands on `scoreboard`, in a process of its own that becomes `identity`."""
        bond = ParentDeathSignal()

        def main(up: Callable[[], None]) -> None:
            MetricsPage(scoreboard, 0.0).text()  # imports all that it needs
            if identity is not None:
                identity.assume()
            bond.arm(signal.SIGKILL)
            # Not by SIGTERM, which a service manager sends to all: the metrics stop last.
            signal.signal(_END, signal.SIG_DFL)
            up()
            self._run(scoreboard)

        # The socket stays open here, for the next one if this one dies: to listen on a low port
        # takes privileges that may have been given up by then.
        return Helper(main, set() if self._sock is None else {self._sock.fileno()})

    def become_worker(self) -> None:
        """In a worker, which starts no exporter: the port is not kept open by it."""
        if self._sock is not None:
            self._sock.close()

    def stop(self, helper: SupervisedHelper) -> None:
        """End it: nobody is left of whom it could tell."""
        helper.tell(_END)
        helper.stop(_GIVEN_UP)
        if self._sock is not None:
            self._sock.close()

    def _run(self, scoreboard: Scoreboard) -> None:
        while self._sock is None:
            time.sleep(_RETRY)
            try:
                self._sock = _listen(self._address)
            except OSError:
                continue
        _Server(self._sock, MetricsPage(scoreboard, self._start_time)).serve_forever()


def _listen(address: tuple[str, int]) -> socket.socket:
    family, *_, found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    return socket.create_server(found, family=family, backlog=_AT_A_TIME)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, sock: socket.socket, page: MetricsPage) -> None:
        super().__init__(sock.getsockname()[:2], _Request, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.page = page
        self._lock = threading.Lock()
        self._in_hand: dict[socket.socket, None] = {}  # the oldest first

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._in_hand) >= _AT_A_TIME:
                # The oldest has had its time: who sends a byte now and then keeps nobody out.
                oldest = next(iter(self._in_hand))
                del self._in_hand[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._in_hand[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._in_hand.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that goes away is nobody's loss."""


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout: ClassVar[float] = _PATIENCE
    server_version = "echoserver"
    sys_version = ""

    def do_HEAD(self) -> None:
        """Answer, without what it is about: balancers probe like this."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer a request for one of the three pages."""
        page = self.server.page
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(200, *page.text())
            case "/healthz":
                self._answer(200, b"ok\n")
            case "/readyz" if page.ready:
                self._answer(200, b"ready\n")
            case "/readyz":
                self._answer(503, b"not ready\n")
            case _:
                self._answer(404, b"/metrics, /healthz, /readyz\n")

    def _answer(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is inherited
        """Log nothing: the log is the server's."""
