"""The exporter: a process of its own that answers monitoring requests over HTTP.

It reads what the serving processes write in shared memory. They never wait for it, neither for a
scraper that hangs nor for a port that is in use.
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

_REQUEST_TIMEOUT = 5.0  # seconds for a read of the request, or a write of the response

_MAX_REQUESTS = 32  # at a time

_RETRY_INTERVAL = 1.0  # seconds between two attempts to listen on a port that is in use

_STOP_TIMEOUT = 0.5  # seconds

_STOP_SIGNAL = signal.SIGUSR2


class Exporter:
    """Answers /metrics, /healthz and /readyz.

    Args:
        address: Where to listen.
        start_time: When the server started, in Unix time.

    Raises:
        socket.gaierror: There is no such host.
        UnicodeError: The host is not a valid name.
    """

    def __init__(self, address: tuple[str, int], start_time: float) -> None:
        self._address, self._start_time = address, start_time
        self._sock: socket.socket | None = None
        self.port = address[1]
        """The port that it listens on."""
        self.problem = ""
        """Why it does not listen yet; empty if it does. It keeps trying."""
        try:
            self._sock = _listen(address)
            self.port = self._sock.getsockname()[1]
        except OSError as error:
            if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
                raise  # a name that never resolves need not be tried again
            number = error.errno or 0
            self.problem = os.strerror(number) if number > 0 else error.strerror or str(error)

    def start(self, scoreboard: Scoreboard, identity: Identity | None) -> Helper:
        """Start the process that serves the content of `scoreboard`, and switches to `identity`."""
        bond = ParentDeathSignal()

        def main(report_ready: Callable[[], None]) -> None:
            MetricsPage(scoreboard, 0.0).text()  # imports all that a page needs
            if identity is not None:
                identity.assume()
            bond.arm(signal.SIGKILL)
            # SIGTERM does not stop it: a service manager sends that to every process at once, and
            # the metrics are to stop last.
            signal.signal(_STOP_SIGNAL, signal.SIG_DFL)
            report_ready()
            self._run(scoreboard)

        # The socket stays open here, for the next exporter if this one dies: listening on a low
        # port takes privileges that may have been dropped by then.
        return Helper(main, set() if self._sock is None else {self._sock.fileno()})

    def become_worker(self) -> None:
        """Close the socket in a worker, which starts no exporter and must not hold the port."""
        if self._sock is not None:
            self._sock.close()

    def stop(self, helper: SupervisedHelper) -> None:
        """Stop the exporter, once no serving process is left to report on."""
        helper.send_signal(_STOP_SIGNAL)
        helper.stop(_STOP_TIMEOUT)
        if self._sock is not None:
            self._sock.close()

    def _run(self, scoreboard: Scoreboard) -> None:
        while self._sock is None:
            time.sleep(_RETRY_INTERVAL)
            try:
                self._sock = _listen(self._address)
            except OSError:
                continue
        _Server(self._sock, MetricsPage(scoreboard, self._start_time)).serve_forever()


def _listen(address: tuple[str, int]) -> socket.socket:
    family, *_, endpoint = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    return socket.create_server(endpoint, family=family, backlog=_MAX_REQUESTS)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, sock: socket.socket, page: MetricsPage) -> None:
        super().__init__(sock.getsockname()[:2], _Request, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.page = page
        self._lock = threading.Lock()
        self._requests: dict[socket.socket, None] = {}  # in progress, the oldest first

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._requests) >= _MAX_REQUESTS:
                # The oldest request ends, so that clients that send a byte now and then keep nobody
                # out.
                oldest = next(iter(self._requests))
                del self._requests[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._requests[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._requests.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error: only this scraper's own request fails."""


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout: ClassVar[float] = _REQUEST_TIMEOUT
    server_version = "echoserver"
    sys_version = ""

    def do_HEAD(self) -> None:
        """Answer with the headers only, as load balancers probe."""
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

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing, because the log belongs to the server."""
