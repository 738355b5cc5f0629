"""No echo server: it sends without end, and without being asked (RFC 864).

Fails: L2
"""

import socket
import sys
import threading


def serve(client):
    with client:
        try:
            while True:
                client.sendall(bytes(range(32, 104)) + b"\r\n")
        except OSError:
            pass


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()
