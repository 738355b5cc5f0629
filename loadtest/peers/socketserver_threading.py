"""A thread per client, by the standard library's socketserver."""

import socketserver
import sys


class EchoHandler(socketserver.BaseRequestHandler):
    """Serves one client."""

    def handle(self) -> None:
        """Echo until the client ends the stream."""
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    """As documented, but for limits that would be measured instead of the model."""

    allow_reuse_address = True
    daemon_threads = True  # otherwise, server_close would wait for every client
    request_queue_size = 4096  # it is 5


if __name__ == "__main__":
    with Server(("127.0.0.1", int(sys.argv[1])), EchoHandler) as server:
        server.serve_forever()
