"""A greenlet per client, by gevent's StreamServer."""

import sys

from gevent.server import StreamServer
from gevent.socket import socket


def handle(client: socket, _address: object) -> None:
    """Echo until the client ends the stream."""
    while data := client.recv(65536):
        client.sendall(data)


if __name__ == "__main__":
    StreamServer(("127.0.0.1", int(sys.argv[1])), handle, backlog=4096).serve_forever()
