"""No echo server: it accepts, and that is all (RFC 863, discard, would read at least).

Fails: L2
"""

import socket
import sys

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    kept = []
    while True:
        kept.append(listener.accept())
